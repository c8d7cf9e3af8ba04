"""Lends the model to a trainer that does as it likes with it, and takes it back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

_CONFIG_KEYS = ("use_cache", "output_hidden_states", "output_attentions", "output_router_logits")
_MISSING = object()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """On exit, modules have the methods, flags, dropout, hooks, dtypes, mode and `requires_grad` that they had.

    Trainers patch `forward`, switch on checkpointing, turn the cache off, cast adapters to bf16, zero dropout.
    Values of parameters are theirs to change.
    """
    modules = list(model.modules())
    attributes = [{k: v for k, v in vars(m).items() if not isinstance(v, dict)} for m in modules]
    hooks = [{k: dict(v) for k, v in vars(m).items() if k.endswith("_hooks") and isinstance(v, dict)} for m in modules]
    parameters = [(p, p.dtype, p.requires_grad) for p in model.parameters()]
    configs = {id(m.config): m.config for m in modules if hasattr(m, "config")}
    before = [(c, {k: getattr(c, k, _MISSING) for k in _CONFIG_KEYS}) for c in configs.values()]
    try:
        yield
    finally:
        for module, own, hooked in zip(modules, attributes, hooks, strict=True):
            _restore(module, own, hooked)
        for parameter, dtype, flag in parameters:
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(flag)
            parameter.grad = None
        for config, values in before:
            for key, value in values.items():
                if value is not _MISSING:
                    setattr(config, key, value)


def _restore(module: nn.Module, own: dict[str, Any], hooked: dict[str, dict[int, Any]]) -> None:
    mine = vars(module)
    for key in [k for k, v in mine.items() if not isinstance(v, dict) and k not in own]:
        del mine[key]
    mine.update(own)
    for key, hooks in hooked.items():
        mine[key].clear()
        mine[key].update(hooks)


class RoleView(nn.Module):
    """A role as a module without parameters, to be given to a trainer as its reference model.

    Its forward enters the role, without gradients and in eval mode, and leaves everything as it was.
    """

    def __init__(self, enter: Callable[[], AbstractContextManager[Any]], model: Any) -> None:
        super().__init__()
        self._enter = enter
        self._model = (model,)

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self._model[0].config

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        device: torch.device = self._model[0].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The base model's."""
        dtype: torch.dtype = self._model[0].dtype
        return dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, as this role."""
        with torch.no_grad(), self._enter():
            return self._model[0](*args, **kwargs)
