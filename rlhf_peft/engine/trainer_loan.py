"""Lends the model to a trainer that does as it likes with it, and takes it back as it was.

Trainers patch `forward`, switch checkpointing off and on again with other settings, turn the cache off, cast
adapters to bf16, zero dropout, align special tokens in the configurations, leave tags and wrappers behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN = (
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "is_gradient_checkpointing",
    "is_activation_checkpointing",
)
"""What a trainer is told is not so: it would cast adapters to bf16, or switch our checkpointing off and on
again without the role that the recomputation must enter."""

_VALUES = frozenset({"_parameters", "_buffers"})
_MISSING = object()


@contextmanager
def restored_after(model: nn.Module) -> Iterator[None]:
    """On exit everything but the values of parameters and buffers is as it was.

    That is: of each module its methods, flags, mode, hooks, submodules and whatever else it carries; the
    configurations; of each parameter its dtype and `requires_grad`; gradients are dropped.
    """
    modules = [_Attributes.of(module, skip=_VALUES) for module in model.modules()]
    configs = [_Attributes.of(config) for config in configurations(model)]
    parameters = [(p, p.dtype, p.requires_grad) for p in model.parameters()]
    for key in HIDDEN:
        model.__dict__[key] = False
    try:
        yield
    finally:
        for kept in [*modules, *configs]:
            kept.restore()
        for parameter, dtype, flag in parameters:
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(flag)
            parameter.grad = None


def configurations(model: nn.Module) -> list[Any]:
    """Every configuration that the modules carry: of the model and its parts, of generation, of adapters."""
    configs: dict[int, Any] = {}
    queue: list[Any] = list(model.modules())
    while queue:
        for value in vars(queue.pop()).values():
            for item in value.values() if isinstance(value, dict) else (value,):
                if _is_config(item) and id(item) not in configs:
                    configs[id(item)] = item
                    queue.append(item)
    return list(configs.values())


def _is_config(value: Any) -> bool:
    return type(value).__name__.endswith("Config") and hasattr(value, "__dict__")


@dataclass(frozen=True, slots=True)
class _Attributes:
    """An object's attributes at one time; containers with what they held."""

    owner: Any
    attributes: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def of(cls, owner: Any, skip: frozenset[str] = frozenset()) -> _Attributes:
        attributes = {key: value for key, value in vars(owner).items() if key not in skip}
        containers = (dict, list, set)
        contents = {k: v.copy() for k, v in attributes.items() if isinstance(v, containers)}
        return cls(owner, attributes, contents)

    def restore(self) -> None:
        mine = vars(self.owner)
        for key in [key for key in mine if key not in self.attributes and key not in _VALUES]:
            del mine[key]
        for key, content in self.contents.items():
            container = self.attributes[key]
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        for key, value in self.attributes.items():
            if mine.get(key, _MISSING) is not value:
                mine[key] = value


class RoleView(nn.Module):
    """A role as a module without parameters, to be given to a trainer as its reference model.

    Its forwards enter the role, without gradients and in eval mode, and leave everything as it was. TRL
    computes log-probabilities from the trunk and the output embedding: these are here by transformers' names.
    """

    def __init__(self, enter: Callable[[], AbstractContextManager[Any]], model: Any) -> None:
        super().__init__()
        self._enter = enter
        self._model = (model,)  # In a tuple, so that it is no submodule.

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

    @property
    def base_model(self) -> Callable[..., Any]:
        """The trunk, as this role."""
        return self._trunk

    def get_output_embeddings(self) -> Any:
        """The language-model head, which all roles share."""
        return self._model[0].get_output_embeddings()

    def _trunk(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), self._enter():
            return self._model[0].base_model(*args, **kwargs)

    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, as this role."""
        with torch.no_grad(), self._enter():
            return self._model[0](input_ids, *args, **kwargs)
