"""A reward's worker process, as the run sees it: started when it is needed, killed when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from .... import library_messages
from ....errors import RewardError
from ....functions import worker

START_LIMIT = 120.0
"""Seconds that importing the reward may take; a batch's own timeout counts from then."""
LONGEST_LINE = 2**30


class Slow(RewardError):
    """The worker did not answer in time and was killed."""


class WorkerProcess:
    """Speaks JSON lines with a worker; it lives across batches, and a new one takes the place of one that died.

    Args:
        target: what the worker imports, as JSON.
        options: those of the reward that the target makes; None where it is a plain function.
    """

    def __init__(self, target: Mapping[str, Any], options: Mapping[str, Any] | None) -> None:
        self._first = {
            "path": list(sys.path),
            "target": dict(target),
            "options": options,
            "library_messages": library_messages.settings(),
        }
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    async def ask(self, message: bytes, timeout: float | None) -> dict[str, Any]:
        """The answer to one batch.

        Raises:
            RewardError: it raised, ended, gave something that is no score, or (`Slow`) took too long.
        """
        async with self._lock:
            if self._process is None or self._process.returncode is not None:
                await self._start()
            return await self._exchange(message, timeout)

    async def _start(self) -> None:
        await self.close()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            worker.__file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            start_new_session=True,
        )
        try:
            await self._exchange(json.dumps(self._first).encode(), START_LIMIT)
        except BaseException:
            await self.close()
            raise

    async def _exchange(self, message: bytes, timeout: float | None) -> dict[str, Any]:
        assert self._process is not None
        try:
            line = await asyncio.wait_for(self._converse(self._process, message), timeout)
        except TimeoutError:
            await self.close()
            raise Slow(f"took longer than {timeout:g} s. Its worker process was killed") from None
        except BaseException:
            await self.close()
            raise
        if not line.endswith(b"\n"):
            status = await self.close()
            raise RewardError(f"lost its worker process, which ended with status {status}")
        answer = dict(json.loads(line))
        for text in answer.pop("library_messages", []):
            library_messages.keep(text)
        return answer

    @staticmethod
    async def _converse(process: asyncio.subprocess.Process, message: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(message + b"\n")
            await process.stdin.drain()
        return await process.stdout.readline()

    def kill(self) -> None:
        """End it from another thread, without waiting."""
        if self._process is not None:
            kill_group(self._process.pid)

    async def close(self) -> int | None:
        """Kill the process and all that it started; its exit status, where it had ended by itself its own."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.05)
        kill_group(process.pid)
        return await process.wait()


def kill_group(pid: int) -> None:
    """End a process and everything in its group, at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)
