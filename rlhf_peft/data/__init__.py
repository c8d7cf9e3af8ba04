"""Loading, checking, encoding and batching of datasets.

A stage calls `load_rows`, `require`, `hold_out`, and then `encode_prompts`, `encode_pairs` or `for_trl`.
"""

from .batch import length_batches, mask_from_lengths, pad_left, pad_right
from .encode import Encoder
from .examples import example
from .formats import Format, detect, require
from .load import hold_out, load_rows
from .prompts import Pair, Prompt, PromptStream, encode_pairs, encode_prompts
from .rows import columns_of
from .trl_rows import for_trl

__all__ = [
    "Encoder",
    "Format",
    "Pair",
    "Prompt",
    "PromptStream",
    "columns_of",
    "detect",
    "encode_pairs",
    "encode_prompts",
    "example",
    "for_trl",
    "hold_out",
    "length_batches",
    "load_rows",
    "mask_from_lengths",
    "pad_left",
    "pad_right",
    "require",
]
