"""The program in a new process that has imported its libraries already: six seconds less for each command.

`python -m tests.ready_program` does what `python -m rlhf_peft` does as it begins, up to the imports. Then it waits, and
for each command that a test sends it forks a child, which goes on as the program would: with the arguments, folder,
environment and files that came with the command, and with an end of its own. Nothing has run in it before, and it has
one thread.

What a child does not show is what happens during the imports. So tests of the imports, and one test at least of each
kind, start a process of their own. Variables that libraries read as they are imported are those of the time when the
server began: there is one server for each set of them.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "MKL_", "CUDA_", "PYTHONWARNINGS")
"""Beginnings of the names of variables that libraries read as they are imported."""
MOST = 2**20
"""Bytes of a command."""


class ReadyProgram:
    """A server with the environment of now; use it through `run` and `start`, and close it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ready_program", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[theirs.fileno()],
            # Python's own streams are made for what the handles are at first. Those of pipes do for all others.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.socket = ours

    def start(
        self,
        arguments: Sequence[str],
        handles: Sequence[int],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Start a command with these handles as stdin, stdout and stderr; returns its process id.

        Args:
            arguments: of the program.
            handles: of open files.
            cwd: its folder; None: that of this process.
            env: its environment; None: that of this process.
        """
        said = {
            "arguments": [*map(str, arguments)],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
        }
        socket.send_fds(self.socket, [json.dumps(said).encode()], [*handles])
        child = self.socket.recv(100)
        assert child, self.process.communicate()[1].decode()
        return int(child)

    def wait(self) -> int:
        """Wait for the command that was started last; its exit code, or minus the signal that ended it."""
        return int(self.socket.recv(100))

    def run(
        self,
        arguments: Sequence[str],
        *,
        input: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; like `subprocess.run` with captured text."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
            files[0].write(input)
            files[0].seek(0)
            child = self.start(arguments, [file.fileno() for file in files], cwd=cwd, env=env)
            self.socket.settimeout(timeout)
            try:
                code = self.wait()
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                self.socket.settimeout(None)
                self.wait()
                raise subprocess.TimeoutExpired([*arguments], timeout) from None
            finally:
                self.socket.settimeout(None)
            shown = [file.seek(0) or file.read() for file in files[1:]]
        return subprocess.CompletedProcess([*arguments], code, *shown)

    def close(self) -> None:
        """End the server."""
        self.socket.close()
        self.process.communicate()


_servers: dict[tuple[tuple[str, str], ...], ReadyProgram] = {}


def ready_program() -> ReadyProgram:
    """The server for the environment of now; it is started where there is none."""
    key = tuple(sorted(item for item in os.environ.items() if item[0].startswith(READ_AT_IMPORT)))
    if key not in _servers:
        _servers[key] = ReadyProgram()
    return _servers[key]


def close_all() -> None:
    """End all servers."""
    while _servers:
        _servers.popitem()[1].close()


def _serve(channel: socket.socket) -> list[str]:
    """Fork a child for each command; returns in the child, with the arguments."""
    while True:
        text, handles, _, _ = socket.recv_fds(channel, MOST, 3)
        if not text:  # the tests have ended
            os._exit(0)
        child = os.fork()
        if child == 0:
            channel.close()
            return _become(json.loads(text), handles)
        for handle in handles:
            os.close(handle)
        channel.send(str(child).encode())
        channel.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _become(command: dict, handles: list[int]) -> list[str]:
    """Take over the files, the folder and the environment of a command; returns its arguments."""
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    # As `python -m` has it: the folder first, then PYTHONPATH.
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [command["cwd"], *given, *(path for path in sys.path[1:] if path not in given)]
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        import sitecustomize  # noqa: F401
    return command["arguments"]


def main() -> None:
    """Begin as the program does, import what it imports, and wait for commands."""
    from rlhf_peft import library_messages

    library_messages.install()
    import datasets  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    import rlhf_peft.api
    import rlhf_peft.cli

    gc.collect()
    gc.freeze()  # so that the end of a child is as quick as it is without a fork
    channel = socket.socket(fileno=int(sys.argv[1]))
    # torch has no pool of threads yet. OpenBLAS and Arrow's allocator see to their own threads at a fork.
    assert threading.active_count() == 1
    arguments = _serve(channel)
    sys.argv = [str(ROOT / "rlhf_peft" / "__main__.py"), *arguments]
    rlhf_peft.cli.main()


if __name__ == "__main__":
    main()
