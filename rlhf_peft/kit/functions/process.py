"""A reward's worker process, as the run sees it: started when it is needed, killed when it takes too long."""

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
"""Seconds that a killed process, and what it printed last, are waited for."""
LONGEST_LINE = 2**30
PRINTED = 2**16
"""Bytes that a worker may print for one batch; the rest is not shown."""


class Slow(RewardError):
    """The worker did not answer in time and was killed."""


class NotImported(RewardError):
    """The reward's module could not be imported, or does not hold the reward.

    Attributes:
        functions: what the module does hold, where that is the trouble.
    """

    def __init__(self, message: str, functions: list[str] | None = None) -> None:
        super().__init__(message)
        self.functions = functions


class WorkerProcess:
    """Speaks JSON lines with a worker; it lives across batches, and a new one takes the place of one that died.

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
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    async def ask(self, message: bytes, timeout: float | None) -> dict[str, Any]:
        """The answer to one batch.

        Raises:
            RewardError: it raised, ended, gave something that is no score, or (`Slow`) took too long.
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
        """Import the reward in a new process; returns what the worker tells of it.

        Raises:
            NotImported: that raised, ended the process, or took too long; or the module does not hold it.
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
        """Pass on to stderr what the worker prints, up to a limit for each batch."""
        assert process.stderr is not None
        kept = b""
        while chunk := await process.stderr.read(2**16):
            before, self._printed = self._printed, self._printed + len(chunk)
            full = before <= PRINTED < self._printed
            kept += chunk[: max(0, PRINTED - before)]
            # Whole lines, for a secret may be cut by the end of a chunk.
            end = 1 + max(kept.rfind(b"\n"), kept.rfind(b"\r"))
            end = len(kept) if full or len(kept) > 2**16 else end
            _print(kept[:end])
            kept = kept[end:]
            if full:
                kilobytes = PRINTED // 1024
                text = (
                    f"{self._target.qualname} printed more than {kilobytes} kB at once; the rest is left out."
                )
                _print(f"\n{text}\n".encode())
        _print(kept)

    def kill(self) -> None:
        """End it from another thread, without waiting."""
        if self._process is not None:
            worker.kill_all(self._process.pid, self._mark)

    async def close(self) -> int | None:
        """Kill the process and all that it started; its exit status, where it had ended by itself its own."""
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


def look(target: Target) -> dict[str, Any]:
    """What a worker tells of a function: whether it can be called, and whether it is async.

    Args:
        target: where the function is; it is imported in a process of its own, which then ends.

    Raises:
        NotImported: that raised, ended the process, or took too long; or the module does not hold it.
    """

    async def start() -> dict[str, Any]:
        process = WorkerProcess(target, None)
        try:
            return await process.start()
        finally:
            await process.close()

    # In a thread, for the caller may have an event loop of its own, as notebooks do.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, start()).result()


def _print(text: bytes) -> None:
    """Write to the handle of stderr, as a child that shares it would, but no secret."""
    clean = str(scrub(text.decode("utf-8", "replace"))).encode()
    with contextlib.suppress(OSError):
        while clean:
            clean = clean[os.write(2, clean) :]
