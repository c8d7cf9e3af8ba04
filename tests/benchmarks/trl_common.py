"""What both TRL contenders share: a clock of the steps, and how the base is loaded."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TrainerCallback

from .measure import on_gpu


class Clock(TrainerCallback):  # type: ignore[misc]
    """When training began and each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        """Seconds of each step."""
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]


def loading(**quantization: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained`: NF4 with double quantization, as ours."""
    dtype = torch.bfloat16 if on_gpu() else torch.float32
    return {
        "dtype": dtype,
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            **quantization,
        ),
        "device_map": "auto" if on_gpu() else "cpu",
    }
