"""Output to the terminal, in which control characters of foreign text are made visible.

Names of columns and rewards, messages of exceptions and texts of a model may hold control characters, which clear the
screen, set its title, or change the order of lines. They are shown as `\\u001b`. All that is printed goes through
`EscapingStream`, which replaces sys.stdout and sys.stderr while a command runs. rich's own control sequences bypass it;
the text that rich is given goes through `make_console`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(
    "\r(?!\n)"
    "|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"  # C0 without tab and new lines, delete, C1
    "|[\u2028\u2029\u202a-\u202e\u2066-\u2069]"  # separators of lines, embeddings and overrides of direction
    "|[\U000e0000-\U000e007f]"  # tags, which no font shows
)
BARS = "tqdm"
"""The one library that draws progress bars of downloads itself, with control characters of its own."""


def escape(text: str) -> str:
    r"""The text with its control characters escaped: `\u001b` for ESC; tabs and new lines stay."""
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class HangupSafeStream:
    """A stream that discards all output, without an error, once its terminal is gone.

    Args:
        stream: the stream that is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        with self._terminal_may_be_gone():
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        with self._terminal_may_be_gone():
            self.stream.flush()

    @contextmanager
    def _terminal_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # What is still in Python's buffer is discarded too.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:
        return self is other or self.stream == other

    def __hash__(self) -> int:
        return hash(self.stream)


class EscapingStream(HangupSafeStream):
    """A stream on which control characters of printed text are made visible."""

    @property
    def rich_proxied_file(self) -> Any:
        """The stream below, for rich to write to: its console has already made control characters visible."""
        below: Any = self.stream
        while (deeper := getattr(below, "rich_proxied_file", None)) is not None:
            below = deeper
        return below

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        foreign = _CONTROL.search(text) and sys._getframe(1).f_globals.get("__name__", "").startswith(BARS)
        super().write(text if foreign else escape(text))
        return len(text)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Send all that is printed inside the block through `EscapingStream`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (EscapingStream(HangupSafeStream(stream)) for stream in before)  # type: ignore[arg-type]
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def make_console(*, stderr: bool = False) -> Console:
    """A rich console for tables and bars, which shows markup such as `[red]` as plain text."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(
                escape(text), **{**how, "markup": False, "highlight": False, "emoji": False}
            )

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            if isinstance(renderable, Text) and _CONTROL.search(renderable.plain):
                renderable = Text(escape(renderable.plain), style=renderable.style)
            yield from super().render(renderable, options)

    stream: Any = sys.stderr if stderr else sys.stdout
    raw_stream = getattr(stream, "rich_proxied_file", stream)
    return Plain(soft_wrap=False, markup=False, highlight=False, emoji=False, file=raw_stream, stderr=stderr)
