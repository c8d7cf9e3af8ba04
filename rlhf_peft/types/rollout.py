"""What a sampler is asked for, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is drawn.

    Attributes:
        max_new_tokens: most tokens drawn, EOS included.
        temperature: logits are divided by it; 0 takes the most likely token.
        stop: strings that end a completion (the string is kept).
        top_p: only the likeliest tokens whose probabilities sum to this; 1 keeps all.
        top_k: only so many of the likeliest tokens; 0 keeps all.
        min_p: only tokens at least this share as likely as the likeliest; 0 keeps all.

    Raises:
        ValueError: a stop string is empty, or is no text.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Check the stop strings."""
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop holds {text!r}; expected text that is not empty")

    @property
    def truncated(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that an algorithm asks a sampler for.

    Attributes:
        prompt_ids: [P] int64, not padded.
        group: rows with the same number answer the same prompt.
        seed: of this row's own random stream.
        params: how to draw.
        tag: free word that the algorithm finds again in the rollout ("sample", "baseline").
        columns: the other columns of the dataset row, given to rewards; `prompt` among them.
    """

    prompt_ids: Tensor
    group: int
    seed: int
    params: SamplingParams
    tag: str = "sample"
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Rollout:
    """What a sampler returns: one row for each request, in the order of the requests, ragged.

    Attributes:
        input_ids: N tensors [T_i] int64, prompt and completion, EOS included where one was drawn.
        action_mask: N tensors [T_i] bool, True where the policy wrote the token.
        finish: N words: how the row ended.
        group: [N] int64.
        tag: N words, from the requests.
        columns: name to N values, from the requests.
        sampler_logps: N tensors [T_i] float32 as the sampler computed them, 0 where not an action; or None.
        version: the policy version that `sync` announced.
    """

    input_ids: list[Tensor]
    action_mask: list[Tensor]
    finish: list[Finish]
    group: Tensor
    tag: list[str]
    columns: dict[str, list[Any]]
    sampler_logps: list[Tensor] | None = None
    version: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, tokens of each row, prompt included."""
        return torch.tensor([len(ids) for ids in self.input_ids], dtype=torch.int64)

    @property
    def completion_lengths(self) -> Tensor:
        """[N] int64, tokens that the policy wrote."""
        return torch.tensor([int(mask.sum()) for mask in self.action_mask], dtype=torch.int64)

    def completion_ids(self, row: int) -> list[int]:
        """The tokens that the policy wrote in one row."""
        ids: list[int] = self.input_ids[row][self.action_mask[row]].tolist()
        return ids

    def rows(self, index: Sequence[int]) -> Rollout:
        """The rollout of some of its rows."""
        logps = self.sampler_logps
        return Rollout(
            input_ids=[self.input_ids[i] for i in index],
            action_mask=[self.action_mask[i] for i in index],
            finish=[self.finish[i] for i in index],
            group=self.group[list(index)],
            tag=[self.tag[i] for i in index],
            columns={name: [values[i] for i in index] for name, values in self.columns.items()},
            sampler_logps=None if logps is None else [logps[i] for i in index],
            version=self.version,
        )

    @classmethod
    def cat(cls, parts: Sequence[Rollout], *, groups: Literal["keep", "renumber"] = "renumber") -> Rollout:
        """One rollout of the rows of several, in order.

        Args:
            parts: at least one.
            groups: renumber: groups of different parts get different numbers; keep: numbers stay as they are.
        """
        if len(parts) == 1:
            return parts[0]
        numbers, first = [], 0
        for part in parts:
            numbers.append(part.group + (first if groups == "renumber" else 0))
            first = int(numbers[-1].max()) + 1
        names = list(dict.fromkeys(name for part in parts for name in part.columns))
        logps = [part.sampler_logps for part in parts]
        return cls(
            input_ids=[ids for part in parts for ids in part.input_ids],
            action_mask=[mask for part in parts for mask in part.action_mask],
            finish=[word for part in parts for word in part.finish],
            group=torch.cat(numbers),
            tag=[tag for part in parts for tag in part.tag],
            columns={
                name: [value for part in parts for value in part.columns.get(name, [None] * len(part))]
                for name in names
            },
            sampler_logps=None if None in logps else [row for part in logps for row in part or ()],
            version=parts[-1].version,
        )
