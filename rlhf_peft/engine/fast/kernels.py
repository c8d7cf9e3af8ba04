"""Kernels of our own, where Triton is there to compile them."""

from __future__ import annotations

import importlib.util
import logging

import torch

from ...maths.logprobs import LogitKernels

log = logging.getLogger("rlhf_peft")


def fused_kernels(device: torch.device) -> LogitKernels | None:
    """Kernels for log-probabilities on a card; None on other devices, and where Triton is not installed."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    try:
        from .fused_logprobs import TritonKernels
    except Exception as error:  # a broken installation may raise anything
        log.info("model.fast: fused_logprobs is not used: Triton cannot be imported (%s).", error)
        return None
    return TritonKernels()
