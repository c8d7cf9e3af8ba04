"""Work-arounds for bitsandbytes: what it does differently on some machines, and private names of its layers."""

from __future__ import annotations

import logging
from typing import Any


def disable_bf16_cpu_kernels(model: Any) -> None:
    """Keep bitsandbytes' 4-bit layers off their bfloat16 kernel, so that every CPU computes the same numbers.

    On CPUs with AVX512-BF16, `Linear4bit` sets `support_avx512bf16_for_cpu`. A forward in eval mode then repacks
    the weights in place: gradients are wrong from then on, logits differ by about 0.05, and a layer whose outputs
    are not whole blocks of the kernel stops with "N must be divisible by block_n". Since bitsandbytes 0.49.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def silence_cast_messages() -> None:
    """Drop the message about casting its inputs that bitsandbytes logs at every product of an int8 layer."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)
