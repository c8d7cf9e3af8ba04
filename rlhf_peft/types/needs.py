"""What environments answer, and what registered things need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EnvironmentStep:
    """What an environment says to an answer of the model.

    Attributes:
        messages: JSON; what the model is to answer next, such as the results of the tools that it has called.
        done: the conversation is over.
        reward: of the answer; None: the environment judges nothing here.
        metrics: numbers to log, averaged over conversations.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    done: bool = False
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a registered thing needs of the device's memory, for `rlhf-peft plan`.

    Attributes:
        rows_per_prompt: rows that an algorithm samples of each prompt; completions that a sampler draws a request.
        rows_at_once: most rows that a sampler decodes at once; None: all of them.
        shares_prompts: whether a sampler holds a prompt once for all its rows, as `DecodingModel.start` does.
        model_bytes: weights of a model of its own, on the device of the base.
        savings: settings that would need less, as they are typed below the thing's own section: "max_rows=64".
    """

    rows_per_prompt: int = 1
    rows_at_once: int | None = None
    shares_prompts: bool = False
    model_bytes: int = 0
    savings: tuple[str, ...] = ()
