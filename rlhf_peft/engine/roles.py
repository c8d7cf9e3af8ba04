"""Which adapter is active: read, set and restored as one value.

PEFT's own `set_adapter()` and `disable_adapter()` also change `requires_grad`; here only the two flags that
the forward reads are touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import adapters, fused
from .compat import enable_checkpointing
from .modes import mode


@dataclass(frozen=True, slots=True)
class Active:
    """The adapters that forwards go through; none means the raw base."""

    adapters: tuple[str, ...]
    disabled: bool


class Switch:
    """Sets the active adapter of a PEFT model without touching anything else.

    Attributes:
        layers: every layer that carries adapters; a new list whenever adapters came or went.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pinned: tuple[str | None] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look for the layers again, after an adapter was added or removed."""
        self.layers = adapters.layers(self._model)
        fused.install(self._model)

    @property
    def active(self) -> Active:
        """What is active now."""
        layer = self.layers[0]
        return Active(tuple(layer.active_adapters), bool(layer.disable_adapters))

    def set(self, active: Active) -> None:
        """Make it so, in every layer."""
        for layer in self.layers:
            layer._active_adapter = list(active.adapters)
            layer._disable_adapters = active.disabled
        if active.adapters:
            self._model.active_adapter = active.adapters[0]
            self._model.base_model.active_adapter = list(active.adapters)

    def to(self, adapter: str | None) -> None:
        """Activate one adapter, or none.

        Raises:
            RuntimeError: dense weights with another adapter in them stand in for the layers.
        """
        if self._pinned not in (None, (adapter,)):
            raise RuntimeError(
                f"a decoder with merged weights is open; {adapter or 'the raw base'} cannot be entered"
            )
        self.set(Active(self.active.adapters, True) if adapter is None else Active((adapter,), False))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever is switched inside is switched back on exit."""
        before = self.active
        try:
            yield
        finally:
            self.set(before)

    @contextmanager
    def pinned(self, adapter: str | None) -> Iterator[None]:
        """Only this adapter can be entered, for its weights are merged into the layers."""
        before, self._pinned = self._pinned, (adapter,)
        try:
            yield
        finally:
            self._pinned = before


class Again(AbstractContextManager[None]):
    """Re-enters the role and the mode that were on when it was made, as often as is asked."""

    def __init__(self, switch: Switch, model: nn.Module) -> None:
        self._switch, self._model = switch, model
        self._active, self._training = switch.active, model.training
        self._open: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        stack.enter_context(self._switch.restored())
        if self._model.training != self._training:
            stack.enter_context(mode(self._model, self._training))
        self._switch.set(self._active)
        self._open.append(stack)

    def __exit__(self, *raised: Any) -> None:
        self._open.pop().close()


def checkpoint_roles(model: Any, switch: Switch) -> None:
    """Recompute activations in the backward pass, under the role and mode of the forward.

    Raises:
        ValueError: the model cannot.
    """
    enable = enable_checkpointing(model)
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), Again(switch, model))})
