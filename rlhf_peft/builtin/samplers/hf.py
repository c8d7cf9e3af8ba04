"""Decodes with transformers' own `generate`: slower than `cached`, for architectures that `cached` cannot decode.

Tokens are drawn as everywhere here: a logits processor draws each row's token from the row's own random numbers and
leaves that token alone to be chosen, and `generate` chooses greedily. So a completion depends on its seed and not on
its batch-mates. What else the model's own generation config asks for (a repetition penalty, banned words) is set
aside: it would change the distribution that is trained. Prompts of models that keep a state are batched by length,
unpadded, for such a model may see padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import (
    DrawOptions,
    LocalOptions,
    LocalSampler,
    PolicyView,
    Row,
    draw,
    keeps_state,
    pad_left,
    streams,
)


class HfOptions(LocalOptions):
    """How completions are drawn, and how many at once."""

    max_rows: int = Field(64, gt=0, le=2**20, description="Most rows decoded at once.")


class HfSampler(LocalSampler):
    """Writes completions with `model.generate`."""

    Options = HfOptions
    name = "hf"
    shares_prompts = False

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end, batch by batch."""
        padded = not keeps_state(model)
        for batch in batches(rows, self.max_rows, view.max_length, padded):
            _generate(model, view, batch)


def batches(rows: list[Row], most: int, max_length: int, padded: bool) -> list[list[Row]]:
    """Batches of at most so many rows; where not `padded`, of one prompt length each.

    Rows that have ended go on with their batch, so none may pass the end of the context before the last has ended.
    """
    made: list[list[Row]] = []
    longest = room = 0
    for row in sorted(rows, key=lambda row: len(row.request.prompt_ids)):
        length = len(row.request.prompt_ids)
        room = max(room, row.room)
        alike = padded or length == longest
        if not made or len(made[-1]) == most or length + room > max_length or not alike:
            made.append([])
            room = row.room
        made[-1].append(row)
        longest = length
    return made


class RowDraws:
    """What `generate` asks at each step: which token each row takes, and whether it has ended."""

    def __init__(self, rows: list[Row], view: PolicyView) -> None:
        self.rows, self.view, self.step = rows, view, 0
        self.numbers = streams(rows, view.device)
        self.options = DrawOptions.of([row.request.params for row in rows], view.device)

    def scores(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V]: 0 at the drawn token, -inf elsewhere."""
        # transformers may look whether all rows have ended only after one more step.
        numbers = self.numbers[min(self.step, len(self.numbers) - 1)]
        tokens, logps = draw(scores, numbers, self.options)
        self.step += 1
        for row, token, logp in zip(self.rows, tokens.tolist(), logps.tolist(), strict=True):
            row.take(token, logp, self.view)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)

    def ended(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """[B] bool."""
        return torch.tensor([row.finish is not None for row in self.rows], device=input_ids.device)


def _generate(model: Any, view: PolicyView, rows: list[Row]) -> None:
    from transformers import GenerationConfig  # slow to import

    ids, mask = pad_left([row.request.prompt_ids.tolist() for row in rows], view.pad_id)
    draws = RowDraws(rows, view)
    plain = GenerationConfig(
        do_sample=False, max_new_tokens=max(row.room for row in rows), pad_token_id=view.pad_id
    )
    with generation_config(model, plain):
        model.generate(
            input_ids=ids.to(view.device),
            attention_mask=mask.to(view.device),
            logits_processor=[draws.scores],
            stopping_criteria=[draws.ended],
        )


@contextmanager
def generation_config(model: Any, config: Any) -> Iterator[None]:
    """Inside, the model has this generation config and not its own."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
