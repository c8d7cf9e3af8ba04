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

from . import adapters
from .compat import enable_checkpointing
from .compat.lora import activate
from .module_state import mode


@dataclass(frozen=True, slots=True)
class AdapterState:
    """The adapters that forwards go through; none means the raw base."""

    adapters: tuple[str, ...]
    disabled: bool


class ActiveAdapter:
    """Sets the active adapter of a PEFT model without touching anything else.

    Attributes:
        layers: every layer that carries adapters; a new list whenever adapters came or went.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pinned: tuple[str | None] | None = None
        self.refresh()
        self._check()

    def _check(self) -> None:
        """RuntimeError if what is set is not what PEFT's own properties say afterwards."""
        before = self.state
        for state in (AdapterState(before.adapters, True), before):
            self.set(state)
            if self.state != state:
                raise RuntimeError(
                    "PEFT no longer reads the active adapter where rlhf_peft sets it; see engine/compat/lora.py."
                )

    def refresh(self) -> None:
        """Look for the layers again, after an adapter was added or removed."""
        self.layers = adapters.layers(self._model)
        self._layers_are_new = True

    @property
    def state(self) -> AdapterState:
        """What is active now."""
        layer = self.layers[0]
        return AdapterState(tuple(layer.active_adapters), bool(layer.disable_adapters))

    def set(self, state: AdapterState) -> None:
        """Make it so, in every layer; nothing is touched where it is so already."""
        if self._is(state):
            return
        self._layers_are_new = False
        activate(self._model, self.layers, state.adapters, state.disabled)

    def _is(self, state: AdapterState) -> bool:
        """Whether it is so already, as the first and the last layer tell: all layers are set together."""
        if self._layers_are_new:
            return False
        if state.adapters and self._model.active_adapter != state.adapters[0]:
            return False
        both = (self.layers[0], self.layers[-1])
        return all(
            tuple(layer.active_adapters) == state.adapters and bool(layer.disable_adapters) == state.disabled
            for layer in both
        )

    def to(self, adapter: str | None) -> None:
        """Activate one adapter, or none.

        Raises:
            RuntimeError: dense weights with another adapter in them stand in for the layers.
        """
        if self._pinned not in (None, (adapter,)):
            raise RuntimeError(
                f"a decoder with merged weights is open; {adapter or 'the raw base'} cannot be entered"
            )
        self.set(
            AdapterState(self.state.adapters, True) if adapter is None else AdapterState((adapter,), False)
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever is switched inside is switched back on exit."""
        before = self.state
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


class RecomputeContext(AbstractContextManager[None]):
    """Re-enters the role and the mode that were on when it was made, as often as is asked."""

    def __init__(self, active: ActiveAdapter, model: nn.Module) -> None:
        self._adapter, self._model = active, model
        self._state, self._training = active.state, model.training
        self._open: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        stack.enter_context(self._adapter.restored())
        if self._model.training != self._training:
            stack.enter_context(mode(self._model, self._training))
        self._adapter.set(self._state)
        self._open.append(stack)

    def __exit__(self, *raised: Any) -> None:
        self._open.pop().close()


def recompute_activations(model: Any, active: ActiveAdapter) -> None:
    """Recompute activations in the backward pass, under the role and mode of the forward.

    Raises:
        ValueError: the model cannot.
    """
    enable = enable_checkpointing(model)
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), RecomputeContext(active, model))})
