"""What goes to the terminal: text that is not ours cannot steer it.

Names of columns and rewards, messages of exceptions, what a model writes: any of them may hold control characters,
which clear the screen, set its title, or show lines in another order than they stand in. They are shown as `\\u001b`.
All that is printed goes through `Visible`, which stands in for sys.stdout and sys.stderr while a verb runs; rich's own
control sequences go past it, and what rich is given goes through `make_console`.
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
"""The one library that draws bars itself, of downloads, with control characters of its own."""


def visible(text: str) -> str:
    r"""The text with its control characters written out: `\u001b` for ESC; tabs and new lines stay."""
    return _CONTROL.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Lasting:
    """A stream that takes everything, and shows nothing, once its terminal is gone because its window was closed.

    Args:
        stream: that is written to.
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
        """Let it be seen."""
        with self._terminal_may_be_gone():
            self.stream.flush()

    @contextmanager
    def _terminal_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # What Python still has in its buffer goes nowhere, too.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:
        return self is other or self.stream == other

    def __hash__(self) -> int:
        return hash(self.stream)


class Visible(Lasting):
    """A stream on which nothing that is printed steers the terminal."""

    @property
    def rich_proxied_file(self) -> Any:
        """What rich writes to: the stream itself, for what rich prints is looked at by its console."""
        below: Any = self.stream
        while (deeper := getattr(below, "rich_proxied_file", None)) is not None:
            below = deeper
        return below

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        foreign = _CONTROL.search(text) and sys._getframe(1).f_globals.get("__name__", "").startswith(BARS)
        super().write(text if foreign else visible(text))
        return len(text)


@contextmanager
def only_visible() -> Iterator[None]:
    """Let all that is printed go through `Visible`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Visible(Lasting(stream)) for stream in before)  # type: ignore[arg-type]
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def make_console(*, stderr: bool = False) -> Console:
    """A console for tables and bars: what it is given is text, in which `[red]` means nothing."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(
                visible(text), **{**how, "markup": False, "highlight": False, "emoji": False}
            )

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            if isinstance(renderable, Text) and _CONTROL.search(renderable.plain):
                renderable = Text(visible(renderable.plain), style=renderable.style)
            yield from super().render(renderable, options)

    stream: Any = sys.stderr if stderr else sys.stdout
    below = getattr(stream, "rich_proxied_file", stream)
    return Plain(soft_wrap=False, markup=False, highlight=False, emoji=False, file=below, stderr=stderr)
