"""The run's side of a reward's worker process: it is started when needed, and killed when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ... import library_messages
from ...errors import RewardError
from ...redact import scrub
from . import worker
from .target import Target

START_LIMIT = 120.0
"""Seconds that importing the reward may take; a batch's own timeout counts from then."""
PATIENCE = 5.0
"""Seconds to wait for a killed process, and for its last output."""
LONGEST_LINE = 2**30
PRINTED = 2**16
"""Bytes that a worker may print for one batch; the rest is not shown."""


class Slow(RewardError):
    """The worker did not answer in time and was killed."""


class NotImported(RewardError):
    """The reward's module could not be imported, or does not define the reward.

    Attributes:
        functions: names that the module defines, where it does not define the reward; None otherwise.
    """

    def __init__(self, message: str, functions: list[str] | None = None) -> None:
        super().__init__(message)
        self.functions = functions


class WorkerProcess:
    """Exchanges JSON lines with a worker process, which serves many batches; one that ended is replaced.

    Args:
        target: what the worker imports.
        options: those of the reward that the target makes; None where it is a plain function.
    """

    def __init__(self, target: Target, options: Mapping[str, Any] | None) -> None:
        self._target, self._mark = target, uuid.uuid4().hex
        self._first = {
            "path": list(sys.path),
            "target": target.plain(),
            "options": options,
            "library_messages": library_messages.settings(),
        }
        self._process: asyncio.subprocess.Process | None = None
        self._relay: asyncio.Task[None] | None = None
        self._printed = 0
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The id of the process; None while there is none."""
        return self._process.pid if self._process else None

    async def ask(self, message: bytes, timeout: float | None) -> dict[str, Any]:
        """The answer to one batch.

        Raises:
            RewardError: the reward raised, ended its process, or (`Slow`) took too long.
        """
        async with self._lock:
            if self._process is None or self._process.returncode is not None:
                await self.start()
            try:
                return await self._exchange(message, timeout)
            except TimeoutError:
                await self.close()
                raise Slow(f"took longer than {timeout:g} s. Its worker process was killed") from None
            except EOFError as end:
                raise RewardError(f"lost its worker process, which ended with status {end}") from None

    async def start(self) -> dict[str, Any]:
        """Import the reward in a new process; returns what the worker reports of it.

        Raises:
            NotImported: the import raised, ended the process, or took too long; or the module does not define it.
        """
        await self.close()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            worker.__file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            start_new_session=True,
            env={**os.environ, worker.MARK: self._mark},
        )
        self._relay = asyncio.create_task(self._show(self._process))
        importing = f"importing {self._target.where}"
        try:
            answer = await self._exchange(json.dumps(self._first).encode(), START_LIMIT)
        except TimeoutError:
            await self.close()
            raise NotImported(
                f"{importing} took longer than {START_LIMIT:g} s, and was ended. Put what takes long into the function"
            ) from None
        except EOFError as end:
            raise NotImported(f"{importing} ended its process with status {end}") from None
        if "error" in answer:
            await self.close()
            raise NotImported(f"{importing} raised {answer['error']}", answer.get("functions"))
        return answer

    async def _exchange(self, message: bytes, timeout: float | None) -> dict[str, Any]:
        """The answer to a message.

        Raises:
            TimeoutError: there is none in time; the process still runs.
            EOFError: the process ended, with this status.
        """
        assert self._process is not None
        self._printed = 0
        try:
            line = await asyncio.wait_for(self._converse(self._process, message), timeout)
        except TimeoutError:
            raise
        except BaseException:
            await self.close()
            raise
        if not line.endswith(b"\n"):
            raise EOFError(await self.close())
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

    async def _show(self, process: asyncio.subprocess.Process) -> None:
        """Copy what the worker prints to stderr, up to a limit for each batch."""
        assert process.stderr is not None
        pending = b""
        while chunk := await process.stderr.read(2**16):
            before, self._printed = self._printed, self._printed + len(chunk)
            full = before <= PRINTED < self._printed
            pending += chunk[: max(0, PRINTED - before)]
            # Whole lines, because the end of a chunk may cut a secret in two.
            end = 1 + max(pending.rfind(b"\n"), pending.rfind(b"\r"))
            end = len(pending) if full or len(pending) > 2**16 else end
            _print(pending[:end])
            pending = pending[end:]
            if full:
                kilobytes = PRINTED // 1024
                text = (
                    f"{self._target.qualname} printed more than {kilobytes} kB at once; the rest is left out."
                )
                _print(f"\n{text}\n".encode())
        _print(pending)

    def kill(self) -> None:
        """Kill the process from another thread, without waiting."""
        if self._process is not None:
            worker.kill_all(self._process.pid, self._mark)

    async def close(self) -> int | None:
        """Kill the process and all that it started; returns its exit status, None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.05)
        await asyncio.to_thread(worker.kill_all, process.pid, self._mark)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), PATIENCE)
        if self._relay is not None:
            await asyncio.wait([self._relay], timeout=PATIENCE)
            self._relay.cancel()
        return process.returncode


def inspect_function(target: Target) -> dict[str, Any]:
    """Import a function in a worker process, which then ends, and report on it.

    Args:
        target: where the function is.

    Returns:
        A mapping with `callable` and `is_async`, and with the module's `functions` where it is not callable.

    Raises:
        NotImported: the import raised, ended the process, or took too long; or the module does not define it.
    """

    async def start() -> dict[str, Any]:
        process = WorkerProcess(target, None)
        try:
            return await process.start()
        finally:
            await process.close()

    # In a thread, because the caller may have a running event loop, as notebooks do.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, start()).result()


def _print(text: bytes) -> None:
    """Write to the file descriptor of stderr, as a child process would, with secrets removed."""
    clean = str(scrub(text.decode("utf-8", "replace"))).encode()
    with contextlib.suppress(OSError):
        while clean:
            clean = clean[os.write(2, clean) :]
