"""One event loop in one thread, for as long as a stage runs: rewards wait there while the model computes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

PATIENCE = 5.0
"""Seconds that what still runs gets to end when the loop is closed."""


class EventLoopThread:
    """A loop in a daemon thread; it starts with the first coroutine."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start a coroutine; does not wait."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @property
    def started(self) -> bool:
        """Whether there is a loop."""
        return self._loop is not None

    def answers(self, patience: float) -> bool:
        """Whether the loop turns: a coroutine that never awaits holds it up, and its own time limit with it.

        Args:
            patience: seconds to wait.
        """
        turned = threading.Event()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(turned.set)
        return turned.wait(patience)

    def close(self) -> None:
        """Cancel what still runs, and end the thread; a coroutine that blocks the loop is left to it."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        if thread is threading.current_thread():
            loop.stop()
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        if not thread.is_alive():
            loop.close()


async def _cancel_all() -> None:
    mine = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not mine]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
