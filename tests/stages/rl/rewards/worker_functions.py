"""Functions that worker processes of the tests import; the standard library alone, so that they start at once."""

import asyncio
import os
import subprocess
import sys
import time


def where(completions, log_metric, log_extra, trainer_state, answer=None, **_):
    print("this goes to stderr")
    log_metric("pid", os.getpid())
    log_metric("parent", os.getppid())
    log_metric("step", trainer_state.global_step)
    log_extra("answer", answer or completions)
    return [1, None, 0.5][: len(completions)]


def scaled(completions, factor, **_):
    return [factor] * len(completions)


def hangs(completions, note, **_):
    child = subprocess.Popen(["sleep", "60"])
    with open(note[0], "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    time.sleep(60)


def sometimes(completions, note, **_):
    """Ends its process the first time."""
    if not os.path.exists(note[0]):
        open(note[0], "w").close()
        os._exit(3)
    return [1.0] * len(completions)


def slow(completions, **_):
    time.sleep(0.6)
    return [1.0] * len(completions)


def raises(**_):
    raise ValueError("no luck")


def exits(**_):
    sys.exit("bye")


def miscounts(**_):
    return [1.0]


def not_a_number(completions, **_):
    return [1.0, float("nan"), 1.0]


async def waits(completions, **_):
    await asyncio.sleep(0.6)
    return [2.0] * len(completions)


async def waits_for_ever(completions, **_):
    await asyncio.sleep(60)


def closure():
    def inner(completions, log_metric, **_):
        log_metric("pid", os.getpid())
        return [1.0] * len(completions)

    return inner
