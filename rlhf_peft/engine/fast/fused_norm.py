"""The root mean square norm as one kernel on a card, forward and backward.

    y = w * x / sqrt(mean(x^2) + eps)

transformers computes it in eight steps, three of them over float32 copies of x, and keeps such a copy for the backward
pass. torch's kernel reads x once, computes in float32 inside, and keeps x as it is. On CPUs torch takes the norm apart
in the same steps, so nothing is changed there. Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .paths import FastPaths


def install(model: nn.Module, fast: FastPaths) -> None:
    """Let every norm of the right form take torch's kernel on a card; a second time does nothing."""
    if not fast.allows("fused_norm"):
        return
    for module in model.modules():
        if _is_rms_norm(module) and "forward" not in module.__dict__:
            module.forward = FusedNorm(module, fast)


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether it has the parts of a norm as Llama has it: a weight [H] and an epsilon of this name, and no more."""
    parts = {name for name, _ in module.named_parameters(recurse=False)}
    return parts == {"weight"} and hasattr(module, "variance_epsilon") and not list(module.children())


class FusedNorm:
    """A norm's forward."""

    def __init__(self, module: Any, fast: FastPaths) -> None:
        self._module, self._fast = module, fast
        self._plain: Callable[..., Tensor] = type(module).forward
        self._same: bool | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The norm of x [..., H] over its last dimension; with more arguments, such as a gate, the module's own way."""
        if args or kwargs or x.device.type != "cuda" or x.dtype != self._module.weight.dtype:
            return self._plain(self._module, x, *args, **kwargs)
        if self._same is None:
            self._same = self._is_same(x)
        return self.ours(x) if self._same else self._plain(self._module, x)

    def ours(self, x: Tensor) -> Tensor:
        """By torch's kernel."""
        module = self._module
        with torch.autocast(x.device.type, enabled=False):  # It would give float32.
            return nn.functional.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)

    def _is_same(self, x: Tensor) -> bool:
        """Whether the module computes the norm, tried on one row, once for each kind of norm and width."""
        row = x.detach().reshape(-1, x.shape[-1])[:1]
        return self._fast.verified_once(
            "fused_norm",
            lambda: self.ours(row),
            lambda: self._plain(self._module, row),
            of=f"norms {type(self._module).__name__} of width {x.shape[-1]}",
        )
