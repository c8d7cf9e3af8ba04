"""The program of a worker process: it imports one reward function, and calls it for each batch.

It is started by its path and exchanges JSON lines over its pipes: the first names what to import, each further one is a
batch. What the function prints goes to stderr. Warnings of libraries are returned with the answers, for the run's log,
if the run keeps them off the terminal (`library_messages`). This file imports little more than the standard library, so
that a worker is small and starts quickly.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

MAIN = "__mp_main__"
"""The name that multiprocessing gives the main module in the processes that it starts."""
MARK = "RLHF_PEFT_WORKER"
"""Environment variable that marks a worker, and all processes that it starts."""
EXPECTED = "a list, a tuple or a one-dimensional array with one number, or None,"

Serve = Callable[[Mapping[str, Any]], dict[str, Any]]


class BadScores(ValueError):
    """A function did not return one number or None for each completion; `row` is the first bad row, if it is known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def keywords(
    arguments: Mapping[str, Any], step: int, metrics: dict[str, float], extra: dict[str, list[Any]]
) -> dict[str, Any]:
    """The keyword arguments that TRL's trainers pass to a reward function.

    Args:
        arguments: prompts, completions, completion_ids and the dataset's columns.
        step: updates so far, as `trainer_state.global_step`: 0 before the first, as in TRL.
        metrics: `log_metric(name, value)` writes here.
        extra: `log_extra(name, values)` writes here.
    """
    return {
        **arguments,
        "log_metric": lambda name, value: metrics.__setitem__(name, float(value)),
        "log_extra": lambda name, values: extra.__setitem__(name, list(values)),
        "trainer_state": SimpleNamespace(global_step=step),
    }


def numbers(result: Any, count: int) -> list[float | None]:
    """The scores that a function returned, as finite numbers and None.

    Args:
        result: a list, a tuple or another sequence, or a one-dimensional array or tensor.
        count: completions that were scored.

    Raises:
        BadScores: it is something else, has another length, or holds something that is no number, NaN or an infinity.
    """
    values = sequence(result)
    if values is None:
        raise BadScores(
            f"returned {described(result)}. Expected {EXPECTED} for each of the {count} completions"
        )
    if len(values) != count:
        raise BadScores(f"gave {counted(len(values))} for {count} completions")
    return [_number(value, row) for row, value in enumerate(values)]


def sequence(value: Any) -> list[Any] | None:
    """The items of a sequence, or of an array of one dimension; None where it is neither.

    A set has no order, a generator no length, and the keys of a mapping are no scores: none of them is taken.
    """
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return list(value)
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return list(value.tolist())
    return None


def counted(scores: int) -> str:
    """A number of scores as text: `1 score`, `3 scores`."""
    return "1 score" if scores == 1 else f"{scores} scores"


def described(value: Any) -> str:
    """The type of a value as text: `None`, `a set`, `a Tensor of shape (2, 3)`."""
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{article} {name}" if shape is None else f"{article} {name} of shape {tuple(shape)}"


def _number(value: Any, row: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", None):
        number = math.nan
    else:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
    if math.isfinite(number):
        return number
    raise BadScores(f"gave {value!r:.200} for row {row}, which is not a finite number. None abstains", row)


def resolve(target: Mapping[str, Any], module: ModuleType | None = None) -> Any:
    """Import what a target names, and bind its keywords.

    Args:
        target: as JSON.
        module: that defines it; None: it is imported.

    Raises:
        NameMissing: the file does not define that name.
        ImportError: or whatever else the module raises.
    """
    if module is None:
        module = importlib.import_module(target["module"]) if target["module"] else _from_file(target["file"])
    value: Any = module
    try:
        for name in target["qualname"].split("."):
            value = getattr(value, name)
    except AttributeError:
        raise NameMissing(own_functions(module)) from None
    return functools.partial(value, **target["keywords"]) if target["keywords"] else value


class NameMissing(AttributeError):
    """A module does not define a name; `functions` are those that it defines."""

    def __init__(self, functions: list[str]) -> None:
        super().__init__(f"there is no such name; it has: {', '.join(functions) or 'none'}")
        self.functions = functions


def own_functions(module: ModuleType) -> list[str]:
    """The names of all callables that a module itself defines, sorted."""
    return sorted(
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    )


def _from_file(path: str) -> ModuleType:
    """Run a file as `python FILE` would, but for `if __name__ == "__main__"`: as multiprocessing does in its children.

    Its folder is the first place where imports are looked for, it gets no arguments, and what it defines can be sent to
    processes that it starts itself.
    """
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    sys.argv = [path]
    spec = importlib.util.spec_from_file_location(MAIN, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Without a spec, multiprocessing finds the module again by its file.
    module.__spec__ = None
    sys.modules["__main__"] = sys.modules[MAIN] = module
    spec.loader.exec_module(module)
    return module


def _load(message: Mapping[str, Any]) -> tuple[Serve, dict[str, Any]]:
    """Import what the first message names; returns the function that serves batches, and a report for the run.

    The function calls a plain reward function, or a whole reward that is made from its options.
    """
    sys.path[:] = message["path"]
    if message["library_messages"] is not None:
        importlib.import_module("rlhf_peft.library_messages").install(**message["library_messages"])
    function = resolve(message["target"])
    if message["options"] is not None:
        serve: Serve = importlib.import_module("rlhf_peft.kit.functions.rebuild").server(
            function, message["options"]
        )
        return serve, {"ready": True}
    info: dict[str, Any] = {"ready": True, "callable": callable(function), "is_async": awaited(function)}
    if not callable(function) and MAIN in sys.modules:
        info["functions"] = own_functions(sys.modules[MAIN])
    return functools.partial(_call, function), info


def awaited(function: Any) -> bool:
    """Whether a function's result has to be awaited."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _call(function: Callable[..., Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    extra: dict[str, list[Any]] = {}
    result = function(**keywords(batch["arguments"], batch["step"], metrics, extra))
    if inspect.isawaitable(result):
        result = _loop().run_until_complete(_awaited(result))
    scores = numbers(result, len(batch["arguments"]["completions"]))
    return {"scores": scores, "metrics": metrics, "extra": extra}


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@functools.cache
def _loop() -> Any:
    """One event loop for all batches, so that a function may keep its connections."""
    import asyncio

    return asyncio.new_event_loop()


def _answer(work: Callable[[], dict[str, Any]]) -> bytes:
    answer = _result_or_error(work)
    messages = sys.modules.get("rlhf_peft.library_messages")
    return json.dumps(
        {**answer, "library_messages": messages.take() if messages else []}, default=str
    ).encode()


def _result_or_error(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        answer = work()
        json.dumps(answer, default=str)  # what cannot be written is the function's mistake
        return answer
    except BadScores as error:
        return {"bad": str(error), "row": error.row}
    except BaseException as error:
        functions = {"functions": error.functions} if isinstance(error, NameMissing) else {}
        return {"error": _error_text(error), "traceback": traceback.format_exc(), **functions}


def _error_text(error: BaseException) -> str:
    """An error on one line, with the last line in the reward's file where it occurred, or else the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    main = getattr(sys.modules.get(MAIN), "__file__", None)
    last = next(
        (frame for frame in reversed(frames) if frame.filename == main), frames[-1] if frames else None
    )
    where = f" ({os.path.basename(last.filename)}:{last.lineno})" if last else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def kill_all(pid: int, mark: str) -> None:
    """Kill a process, all that it started, and every other process with its mark; this process is never killed.

    Args:
        pid: of the process.
        mark: value of the environment variable `RLHF_PEFT_WORKER`, which what it started inherits.
    """
    import psutil

    with contextlib.suppress(psutil.Error):
        _kill(psutil.Process(pid).children(recursive=True))
    if pid != os.getpid():
        with contextlib.suppress(psutil.Error):
            _kill([psutil.Process(pid)])
    for _ in range(3):
        marked = [process for process in psutil.process_iter() if _is_marked(process, mark, psutil.Error)]
        if not marked:
            return
        _kill(marked)
        psutil.wait_procs(marked, timeout=1)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        # A process that has ended already raises.
        with contextlib.suppress(Exception):
            process.kill()


def _is_marked(process: Any, mark: str, errors: type[Exception]) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == mark
    except (errors, OSError):
        return False


def _end_with(parent: int) -> None:
    """End this process when the run's process has ended, even while the function is running."""
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(Exception):
        kill_all(os.getpid(), os.environ[MARK])
    os._exit(1)


def main() -> None:
    """Serve requests until the pipe is closed."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if hasattr(os, "getppid"):
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serve: Serve | None = None

    def load(message: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal serve
        serve, info = _load(message)
        return info

    worker_pid = os.getpid()
    for line in requests:
        message = json.loads(line)
        answer = _answer(functools.partial(serve or load, message)) + b"\n"
        if os.getpid() != worker_pid:
            os._exit(0)  # A child that the function forked: only the worker itself answers.
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    main()
