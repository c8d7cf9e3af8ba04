"""The worker's side of a reward: imports one function and calls it, over and over, in a process of its own.

It is started by its path and speaks JSON lines over its pipes: the first names what to import, each further one is a
batch. What the function prints goes to stderr. What libraries warn of goes back with the answers, for the run's log, if
the run keeps it off the terminal (`library_messages`). Little more than the standard library is imported here, so that
a worker is small and starts at once; what the function's own module imports is its own affair.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

Serve = Callable[[Mapping[str, Any]], dict[str, Any]]


class BadScores(ValueError):
    """What a function returned is not one number or None for each completion; `row` where one row is to blame."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def keywords(
    arguments: Mapping[str, Any], step: int, metrics: dict[str, float], extra: dict[str, list[Any]]
) -> dict[str, Any]:
    """The keywords that TRL's trainers give a reward function.

    Args:
        arguments: prompts, completions, completion_ids and the dataset's columns.
        step: of the run, as `trainer_state.global_step`.
        metrics: `log_metric(name, value)` writes here.
        extra: `log_extra(name, values)` writes here.
    """
    return {
        **arguments,
        "log_metric": lambda name, value: metrics.__setitem__(name, float(value)),
        "log_extra": lambda name, values: extra.__setitem__(name, list(values)),
        "trainer_state": SimpleNamespace(global_step=step),
    }


def numbers(given: Any, count: int) -> list[float | None]:
    """What a function returned, as finite numbers and None.

    Raises:
        BadScores: another count than `count`, something that is no number, NaN or an infinity.
    """
    values = [] if given is None or isinstance(given, (str, bytes)) else list(given)
    if len(values) != count:
        raise BadScores(f"gave {len(values)} scores for {count} completions")
    return [_number(value, row) for row, value in enumerate(values)]


def _number(value: Any, row: int) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise BadScores(f"gave {value!r} for row {row}, which is not a finite number. None abstains", row)


def resolve(target: Mapping[str, Any]) -> Any:
    """What a target names: `module` or `file`, the qualified name in it, and keywords to bind.

    Raises:
        ImportError, AttributeError, or whatever the module raises.
    """
    name, file = target["module"], target["file"]
    found: Any = importlib.import_module(name) if name else _from_file(file)
    found = functools.reduce(getattr, target["qualname"].split("."), found)
    return functools.partial(found, **target["keywords"]) if target["keywords"] else found


def _from_file(path: str) -> ModuleType:
    name = f"rlhf_peft_worker_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load(message: Mapping[str, Any]) -> Serve:
    """What serves batches: a function, or a whole reward rebuilt from its options."""
    sys.path[:] = message["path"]
    if message["library_messages"] is not None:
        importlib.import_module("rlhf_peft.library_messages").install(**message["library_messages"])
    found = resolve(message["target"])
    if message["options"] is not None:
        serve: Serve = importlib.import_module("rlhf_peft.functions.rebuild").server(
            found, message["options"]
        )
        return serve
    return functools.partial(_call, found)


def _call(function: Callable[..., Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    extra: dict[str, list[Any]] = {}
    given = function(**keywords(batch["arguments"], batch["step"], metrics, extra))
    scores = numbers(given, len(batch["arguments"]["completions"]))
    return {"scores": scores, "metrics": metrics, "extra": extra}


def _answer(work: Callable[[], dict[str, Any]]) -> bytes:
    answer = _worked(work)
    messages = sys.modules.get("rlhf_peft.library_messages")
    return json.dumps(
        {**answer, "library_messages": messages.take() if messages else []}, default=str
    ).encode()


def _worked(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        answer = work()
        json.dumps(answer, default=str)  # what cannot be written is the function's mistake
        return answer
    except BadScores as error:
        return {"bad": str(error), "row": error.row}
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
        told = f"{type(error).__name__}: {error}{where}"
        return {"error": told, "traceback": traceback.format_exc()}


def _end_with(parent: int) -> None:
    """Do not outlive the run, also where the function never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Serve until the pipe is closed."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if hasattr(os, "getppid"):
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serve: Serve | None = None

    def load(message: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal serve
        serve = _load(message)
        return {"ready": True}

    for line in requests:
        message = json.loads(line)
        answers.write(_answer(functools.partial(serve or load, message)) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
