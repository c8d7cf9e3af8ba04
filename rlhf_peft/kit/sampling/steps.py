"""Two ways to go on with a batch of rows: a step and a draw at a time, or in a loop that stays on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from ...hookspecs import TokenDecoder
from ..upload import upload
from .drawing import DrawOptions, draw
from .rows import Row, streams


class Steps(Protocol):
    """Draws tokens for the rows of a batch.

    Attributes:
        room: most tokens of a row.
    """

    room: int

    def run(self, tokens: int) -> Tensor:
        """Go on until each row has so many tokens; the new ones and their log-probabilities, [t, 2, B] float64.

        Token ids are exact in float64, and both are read at once.
        """
        ...

    def keep(self, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """Go on with some rows, numbered among the present ones."""
        ...

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether it is faster to `keep` only the `going` rows that have not ended, out of the current `rows`."""
        ...


class Loop(Protocol):
    """A decoder's own loop over steps and draws; see `engine.decoding_loop.DecodingLoop`."""

    def run(self, tokens: int) -> None:
        """Go on until so many tokens of each row are drawn."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [B']."""
        ...

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether fewer rows pay."""
        ...


class LoopingDecoder(TokenDecoder, Protocol):
    """A decoder that may have a loop of its own.

    Attributes:
        loops: whether it has.
    """

    @property
    def loops(self) -> bool:
        """Whether `loop` may be called."""
        ...

    def loop(self, draw: Callable[[Tensor, Tensor], Tensor]) -> Loop:
        """The loop, before any step.

        Args:
            draw: tokens [B] for logits [B, V] and their number [1].
        """
        ...


def steps_of(decoder: TokenDecoder, rows: Sequence[Row], device: torch.device | str) -> Steps:
    """The steps of a decoder; in a loop of its own, where it has one.

    Args:
        decoder: of the rows' prompts, in the order of the rows.
        rows: of the batch.
        device: of the decoder's logits.
    """
    if getattr(decoder, "loops", False):
        return LoopedSteps(cast(LoopingDecoder, decoder), rows, device)
    return PlainSteps(decoder, rows, device)


class PlainSteps:
    """A step of the decoder and a draw for each token.

    Args:
        decoder: of the rows' prompts.
        rows: of the batch.
        device: of the decoder's logits.
    """

    def __init__(self, decoder: TokenDecoder, rows: Sequence[Row], device: torch.device | str) -> None:
        self._decoder, self._device = decoder, device
        self._uniforms = streams(rows, device)
        self._options = DrawOptions.of([row.request.params for row in rows], device)
        self.room = len(self._uniforms)
        self._drawn = 0
        self._tokens: Tensor | None = None

    def run(self, tokens: int) -> Tensor:
        """Go on until each row has so many tokens."""
        out = []
        for t in range(self._drawn, tokens):
            before = self._tokens
            logits = self._decoder.logits if before is None else self._decoder.step(before)
            self._tokens, logps = draw(logits, self._uniforms[t], self._options)
            out.append(torch.stack((self._tokens.double(), logps.double())))
        self._drawn = tokens
        return torch.stack(out)

    def keep(self, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """Go on with some rows."""
        keep = upload(torch.tensor(indices), self._device)
        self._decoder.keep(keep)
        assert self._tokens is not None
        self._tokens, self._uniforms = self._tokens[keep], self._uniforms[:, keep]
        self._options = DrawOptions.of([row.request.params for row in rows], self._device)

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether fewer rows pay."""
        return self._decoder.should_compact(going, rows)


class Draws:
    """Draws that need no host: the number of a token is a tensor, and what is drawn is kept on the device.

    Args:
        rows: of the batch.
        device: of the logits.

    Attributes:
        drawn: [T, 2, B] float64, tokens and log-probabilities.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device | str) -> None:
        self._device = device
        self._uniforms = streams(rows, device)
        self._options = DrawOptions.of([row.request.params for row in rows], device)
        self.drawn = torch.zeros(len(self._uniforms), 2, len(rows), dtype=torch.float64, device=device)

    def __call__(self, logits: Tensor, number: Tensor) -> Tensor:
        """Tokens [B] for logits [B, V]; their number is [1] int64."""
        uniforms = self._uniforms.index_select(0, number).squeeze(0)
        tokens, logps = draw(logits, uniforms, self._options)
        self.drawn.index_copy_(0, number, torch.stack((tokens.double(), logps.double())).unsqueeze(0))
        return tokens

    def keep(self, keep: Tensor, rows: Sequence[Row]) -> None:
        """Go on with some rows."""
        self._uniforms, self.drawn = self._uniforms[:, keep], self.drawn[:, :, keep]
        self._options = DrawOptions.of([row.request.params for row in rows], self._device)


class LoopedSteps:
    """The decoder's own loop.

    Args:
        decoder: of the rows' prompts.
        rows: of the batch.
        device: of the decoder's logits.
    """

    def __init__(self, decoder: LoopingDecoder, rows: Sequence[Row], device: torch.device | str) -> None:
        self._device = device
        self._draws = Draws(rows, device)
        self._loop = decoder.loop(self._draws)
        self.room = len(self._draws.drawn)
        self._drawn = 0

    def run(self, tokens: int) -> Tensor:
        """Go on until each row has so many tokens."""
        self._loop.run(tokens)
        begin, self._drawn = self._drawn, tokens
        return self._draws.drawn[begin:tokens]

    def keep(self, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """Go on with some rows."""
        keep = upload(torch.tensor(indices), self._device)
        self._loop.keep(keep)
        self._draws.keep(keep, rows)

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether fewer rows pay."""
        return self._loop.should_compact(going, rows)
