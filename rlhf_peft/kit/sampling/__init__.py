"""Building blocks for samplers: options, rows in progress, drawing from logits, and a base class."""

from .drawing import DrawOptions, draw, uniforms
from .local import LocalSampler, provided, write_rows
from .options import LocalOptions, SamplingOptions
from .rows import Row, by_length, pad_left, rollout_of, start_rows, streams

__all__ = [
    "DrawOptions",
    "LocalOptions",
    "LocalSampler",
    "Row",
    "SamplingOptions",
    "by_length",
    "draw",
    "pad_left",
    "provided",
    "rollout_of",
    "start_rows",
    "streams",
    "uniforms",
    "write_rows",
]
