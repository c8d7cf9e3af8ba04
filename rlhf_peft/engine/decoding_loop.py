"""Decoding in which the way from a token to the next one stays on the device: step and draw are one captured function.

The host launches one graph a token. It counts the steps, but reads no token.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .fast import FastPaths
from .fast.lean.own_tokens import FixedTokens
from .fast.paths import CANNOT

NAME = "cuda_graphs"
WORTH = 16
"""Fewest steps for which a graph is captured: capturing takes about as long as some steps without it."""


class Graphs(Protocol):
    """Captures functions; see `fast.cuda_graphs.CudaGraphs`."""

    def aside(self) -> AbstractContextManager[None]:
        """Where a function runs once before it is captured."""
        ...

    def capture(self, function: Callable[[], object]) -> Callable[[], None]:
        """A function that does the same again."""
        ...


@dataclass(frozen=True, slots=True)
class Capturing:
    """How steps are captured.

    Attributes:
        graphs: captures them.
        fast: whether that is allowed, and whether graphs were found to give the same.
        of: what the model multiplies with, in words: each is compared once.
    """

    graphs: Graphs
    fast: FastPaths
    of: str


class Decoder(Protocol):
    """Rows that are being decoded; see `decoding.RowDecoder`."""

    logits: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] of each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows."""
        ...


class DecodingLoop:
    """Steps and draws, by one graph for each number of rows and each reach of the buffers.

    Before a graph is captured one step is computed without it, as CUDA wants it. Rows only become fewer, and buffers
    are only read further, so that no graph is needed again: it goes, with its memory, before the next one is captured.

    Args:
        decoder: takes tokens at the place that `own.count` holds.
        own: where it holds the rows' own tokens.
        draw: tokens [B] for logits [B, V] and their number [1]; it keeps them where they can be read.
        room: most tokens of a row.
        capturing: how steps are captured.
    """

    def __init__(
        self,
        decoder: Decoder,
        own: FixedTokens,
        draw: Callable[[Tensor, Tensor], Tensor],
        room: int,
        capturing: Capturing,
    ) -> None:
        self._decoder, self._own, self._draw, self._room = decoder, own, draw, room
        self._capturing = capturing
        self._tokens = draw(decoder.logits, own.count)
        self._drawn = 1
        self._replay: Callable[[], None] | None = None

    def run(self, tokens: int) -> None:
        """Go on until so many tokens of each row are drawn."""
        while self._drawn < tokens:
            if self._drawn > self._own.reach:
                self._replay = None
                self._own.widen()
            if self._replay is None:
                self._begin()
            else:
                self._replay()
            self._drawn += 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [B'], numbered among the present ones."""
        self._replay = None
        self._decoder.keep(rows)
        self._tokens = self._tokens[rows]

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether it pays to go on with `going` of `rows` rows alone, which takes a graph of its own.

        So there are no more sizes than powers of two, and none for the last few steps.
        """
        is_half = rows > 1 and going <= 1 << ((rows - 1).bit_length() - 1)
        return is_half and self._room - self._drawn >= WORTH

    def _step(self) -> None:
        """One token more for each row; without a word from the host."""
        self._tokens.copy_(self._draw(self._decoder.step(self._tokens), self._own.count))

    def _begin(self) -> None:
        """One step that is not captured, and after it the graph of those that follow."""
        fast, left = self._capturing.fast, min(self._own.reach + 1, self._room) - self._drawn
        if left < WORTH or not fast.allows(NAME):
            self._step()
            return
        before = self._own.count.clone(), self._tokens.clone()
        with self._capturing.graphs.aside():
            self._step()

        def again() -> Tensor:
            """The logits of the same step by the graph."""
            self._replay = self._capturing.graphs.capture(self._step)
            self._return_to(*before)
            self._replay()
            return self._decoder.logits

        is_same = fast.verified_once(
            NAME,
            again,
            lambda: self._decoder.logits,
            of=self._capturing.of,
            logits=True,
            dtype=self._own.dtype,
            warns=True,
        )
        if not is_same:
            self._replay = None
            self._return_to(*before)
            self._step()
        elif self._replay is None:  # They were compared before.
            try:
                self._replay = self._capturing.graphs.capture(self._step)
            except CANNOT as error:
                fast.give_up(NAME, f"it raised {type(error).__name__}")

    def _return_to(self, count: Tensor, tokens: Tensor) -> None:
        self._own.count.copy_(count)
        self._tokens.copy_(tokens)
