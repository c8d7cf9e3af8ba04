"""Decodes with transformers' own `generate`: slower than `cached`, for architectures that `cached` cannot decode.

Tokens are drawn as in the other samplers: a logits processor draws each row's token from the row's own random
numbers and leaves only that token possible, so that `generate` chooses it greedily. So a completion depends on its
seed and not on the other rows of its batch. Other settings of the model's generation config (a repetition penalty,
banned words) are not used, because they would change the distribution that is trained. Prompts of models with a
recurrent state are batched by length without padding, because such a model may process padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rlhf_peft.plugin import (
    DecodingModel,
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
    """Options of `hf`."""

    max_rows: int = Field(64, gt=0, le=2**20, description="Most rows decoded at once.")


class HfSampler(LocalSampler):
    """Writes completions with `model.generate`."""

    Options = HfOptions
    name = "hf"
    shares_prompts = False

    def write(self, model: DecodingModel, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end, batch by batch."""
        padded = not keeps_state(model.lm)
        for batch in batches(rows, self.max_rows, view.max_length, padded):
            _generate(model.lm, view, batch)


def batches(rows: list[Row], most: int, max_length: int, padded: bool) -> list[list[Row]]:
    """Batches of at most `most` rows; if not `padded`, each batch has prompts of one length.

    Rows that have ended stay in their batch, so no row may reach the end of the context before the last one has ended.
    """
    result: list[list[Row]] = []
    longest = room = 0
    for row in sorted(rows, key=lambda row: len(row.request.prompt_ids)):
        length = len(row.request.prompt_ids)
        room = max(room, row.room)
        fits_length = padded or length == longest
        if not result or len(result[-1]) == most or length + room > max_length or not fits_length:
            result.append([])
            room = row.room
        result[-1].append(row)
        longest = length
    return result


class RowDraws:
    """Callbacks of `generate` for each step: which token each row takes, and whether it has ended."""

    def __init__(self, rows: list[Row], view: PolicyView) -> None:
        self.rows, self.view, self.step = rows, view, 0
        self.numbers = streams(rows, view.device)
        self.options = DrawOptions.of([row.request.params for row in rows], view.device)

    def scores(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw a token for each row. Returns [B, V]: 0 at the drawn token, -inf elsewhere."""
        # transformers may look whether all rows have ended only after one more step.
        numbers = self.numbers[min(self.step, len(self.numbers) - 1)]
        tokens, logps = draw(scores, numbers, self.options)
        self.step += 1
        for row, token, logp in zip(self.rows, tokens.tolist(), logps.tolist(), strict=True):
            row.take(token, logp, self.view)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)

    def ended(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row has ended, [B] bool."""
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
    """Give the model another generation config inside this context."""
    original = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = original
