"""Renders chat templates, which are programs that came with a model, with limits of time, memory and size.

jinja's sandbox keeps a template from everything but the messages. It does not keep it from running for ever, nor from
asking for all memory: `{{ 'a' * 10 ** 10 }}`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateError

SECONDS = 10.0
"""For one conversation; a real template takes milliseconds."""
CHARACTERS = 16_000_000
"""Of one conversation as text."""
MEMORY = 2**30
"""Bytes that a template may take beside what the process has already."""


_greedy: dict[str, str] = {}
"""Templates that have taken too much once, and what: thousands of rows do not wait for each of them again."""


class TemplateRefused(ValueError):
    """A chat template does not write a conversation; the message says why."""


class _TooSlow(Exception):
    """A template has taken too long."""


def render(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """A conversation as its model's chat template writes it.

    Args:
        tokenizer: of transformers, with a chat template.
        messages: the conversation.
        kwargs: further arguments of `apply_chat_template`, those of the template among them.

    Raises:
        TemplateRefused: the template refuses the conversation, or takes too long, too much memory, or writes too much.
    """
    template = ""
    try:
        template = tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
        if _has_power(template):
            raise TemplateRefused("the chat template raises to a power (`**`), which may take for ever")
        if template in _greedy:
            raise TemplateRefused(_greedy[template])
        with _limited_time(SECONDS), _limited_memory(MEMORY):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))
    except TemplateRefused:
        raise
    except _TooSlow:
        _greedy[template] = f"the chat template takes longer than {SECONDS:g} seconds"
        raise TemplateRefused(_greedy[template]) from None
    except MemoryError:
        _greedy[template] = f"the chat template takes more than {MEMORY / 2**30:g} GB of memory"
        raise TemplateRefused(_greedy[template]) from None
    except Exception as error:  # templates raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TemplateRefused(f"the chat template refuses it: {reason}") from error
    if len(text) > CHARACTERS:
        raise TemplateRefused(f"the chat template writes {len(text):,} characters, more than {CHARACTERS:,}")
    return text


@lru_cache(maxsize=64)
def _has_power(template: str) -> bool:
    """Whether a template raises a number to a power: the one operation that no signal can interrupt.

    `f(**arguments)` is none.
    """
    before = ""
    try:
        for _, kind, text in Environment().lex(template):
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            before = before if kind == "whitespace" else text
    except TemplateError:
        return False  # the template itself is wrong, and says so when it is rendered
    return False


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """Raise `_TooSlow` in what takes longer; without a limit outside of the main thread, and on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before: Any = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited_memory(most: int) -> Iterator[None]:
    """Let the process take only so much more memory; without a limit where the system has none."""
    used = _used() if sys.platform == "linux" else None
    if used is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + most
    lower = limit if soft == resource.RLIM_INFINITY else min(soft, limit)
    resource.setrlimit(resource.RLIMIT_AS, (lower, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _used() -> int | None:
    """Bytes of address space that the process has; None where that is not known."""
    try:
        file = os.open(
            "/proc/self/statm", os.O_RDONLY
        )  # `open` takes three times as long, for each conversation
        try:
            pages = int(os.read(file, 100).split()[0])
        finally:
            os.close(file)
    except (OSError, ValueError, IndexError):
        return None
    return pages * _page()


@lru_cache(maxsize=1)
def _page() -> int:
    import resource

    return resource.getpagesize()


__all__ = ["TemplateRefused", "render"]
