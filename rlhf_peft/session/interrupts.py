"""Signals that end a run wait until it can be saved.

While an update changes weights, neither the last state nor the next one can be written. A first SIGINT (Ctrl-C),
SIGTERM or SIGHUP that arrives meanwhile takes effect at the next snapshot; a second one takes effect at once.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger("rlhf_peft")

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
Handler = Callable[[int, FrameType | None], Any]


class Interrupts:
    """Passes signals on to the handlers that were there before, at once or after the update."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None
        self._handlers: dict[int, Handler] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand before the handlers of this process; outside of the main thread, signals are left alone."""
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        self._handlers = {number: handler for number, handler in before.items() if callable(handler)}
        try:
            for number in self._handlers:
                signal.signal(number, self._arrived)
        except ValueError:  # This is not the main thread.
            self._handlers = {}
        try:
            yield
        finally:
            self._held, self._waiting = False, None
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._arrived:
                    signal.signal(number, handler)

    def hold(self) -> None:
        """A signal from now on waits for `release`."""
        self._held = True

    def release(self) -> None:
        """Pass on the signal that has waited, if any."""
        self._held = False
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            self._handlers[number](number, None)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._held and self._waiting is None:
            self._waiting = number
            with contextlib.suppress(RuntimeError):  # the signal has interrupted a write to the same stream
                log.warning(
                    "%s: the run stops after this update (in SFT, DPO and KTO also after its evaluation), when its "
                    "state can be saved. A second signal stops it at once; a resume then starts from the last "
                    "checkpoint that was written.",
                    signal.Signals(number).name,
                )
            return
        self._waiting = None
        self._handlers[number](number, frame)
