"""The rows of a batch while they are sampled, and the rollout that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import SamplerError
from ...hookspecs import PolicyView
from ...types import Finish, Request, Rollout
from ..upload import upload
from .drawing import uniforms

MARGIN = 8
"""Tokens and characters read beyond a stop string: a cut character or a stripped space at the window's edge."""


@dataclass(slots=True)
class Row:
    """A row while it is sampled.

    Attributes:
        request: that it answers.
        room: most tokens that it may have.
        tokens: sampled so far.
        logps: their log-probabilities under the distribution that was drawn from.
        finish: how it ended; None while it goes on.
    """

    request: Request
    room: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Finish | None = None

    def take(self, token: int, logp: float, view: PolicyView) -> None:
        """Append a drawn token, and set `finish` where the row ends; a finished row takes no more tokens."""
        if self.finish is not None:
            return
        self.tokens.append(token)
        self.logps.append(logp)
        if token in view.eos_ids:
            self.finish = "eos"
        elif self.request.params.stop and stops(self.tokens, self.request.params.stop, view.decode):
            self.finish = "stop"
        elif len(self.tokens) >= self.room:
            self.finish = "length"

    def stream(self) -> Tensor:
        """The row's random numbers, [room] float32."""
        return uniforms(self.request.seed, self.room)


def stops(tokens: Sequence[int], stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether the text of the tokens ends in a token that completed a stop string.

    Reads the text before the last token only as far as a stop string reaches. A token has a byte of its own or, if it
    is a special one, no text at all; where the window's text proves too short it is doubled.
    """
    reach = max(len(string.encode()) for string in stop) + MARGIN
    size, last = reach + 1, -1
    text = decode(tokens[-size:])
    while size < len(tokens):
        last = len(decode(tokens[-1:])) if last < 0 else last
        if len(text) - last >= max(map(len, stop)) + MARGIN:
            break
        size *= 2
        text = decode(tokens[-size:])
    return any(string in text for string in stop)


def start_rows(requests: Sequence[Request], max_length: int, who: str) -> list[Row]:
    """A row for each request.

    Raises:
        SamplerError: a prompt leaves no room for a token.
    """
    rows = []
    for request in requests:
        prompt = len(request.prompt_ids)
        room = min(request.params.max_new_tokens, max_length - prompt)
        if room <= 0:
            raise SamplerError(
                f"sampler {who}: a prompt of {prompt} tokens leaves no room in a context of {max_length}. Take shorter "
                "prompts, or set a larger model.max_length."
            )
        rows.append(Row(request, room))
    return rows


def by_length(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """Batches of at most `most` rows, with prompts of similar length together, so that there is little padding."""
    order = sorted(rows, key=lambda row: len(row.request.prompt_ids))
    return [order[begin : begin + most] for begin in range(0, len(order), most)]


def streams(rows: Sequence[Row], device: torch.device | str) -> Tensor:
    """The random numbers of each step, [T, B] float32; 0 where a row has no room any more."""
    drawn = [row.stream() for row in rows]
    return upload(torch.nn.utils.rnn.pad_sequence(drawn), device)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts [B, P] int64 padded on the left, and their mask [B, P] int64."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids, mask


def rollout_of(rows: Sequence[Row], version: int) -> Rollout:
    """The rollout of rows that have ended."""
    names = list(dict.fromkeys(name for row in rows for name in row.request.columns))
    ids, masks, logps = [], [], []
    for row in rows:
        prompt = row.request.prompt_ids.cpu()
        ids.append(torch.cat([prompt, torch.tensor(row.tokens, dtype=torch.int64)]))
        masks.append(torch.arange(len(ids[-1])) >= len(prompt))
        logps.append(torch.cat([torch.zeros(len(prompt)), torch.tensor(row.logps, dtype=torch.float32)]))
    return Rollout(
        input_ids=ids,
        action_mask=masks,
        finish=[row.finish or "length" for row in rows],
        group=torch.tensor([row.request.group for row in rows], dtype=torch.int64),
        tag=[row.request.tag for row in rows],
        columns={name: [row.request.columns.get(name) for row in rows] for name in names},
        sampler_logps=logps,
        version=version,
    )
