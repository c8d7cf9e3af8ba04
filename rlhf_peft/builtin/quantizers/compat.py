"""What bitsandbytes does differently on some machines, and private names of its layers."""

from __future__ import annotations

import logging
from typing import Any


def compute_alike_on_every_cpu(model: Any) -> None:
    """Keep bitsandbytes' 4-bit layers off its bfloat16 kernel for CPUs with AVX512-BF16, as on every other CPU.

    With `support_avx512bf16_for_cpu`, which `Linear4bit` sets where the processor can, a forward in eval mode repacks
    the weights in place: gradients are wrong from then on, logits differ by some 0.05, and a layer whose outputs are
    not whole blocks of the kernel stops with "N must be divisible by block_n". Since bitsandbytes 0.49.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet_int8() -> None:
    """Drop what bitsandbytes logs at every single product of an int8 layer: the dtype that inputs are cast to."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)
