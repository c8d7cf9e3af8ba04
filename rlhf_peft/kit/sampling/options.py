"""The options that every sampler shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ...hookspecs import Options
from ...types import SamplingParams


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("an empty string would end every completion at once. Leave it out")
    return text


class SamplingOptions(Options):
    """Options for drawing completions."""

    max_new_tokens: int = Field(256, gt=0, le=2**24, description="Most tokens of a completion, EOS included.")
    temperature: float = Field(
        1.0, ge=0, le=1e6, description="Logits are divided by it; RL needs more than 0."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Only the likeliest tokens whose probabilities sum to this; 1 keeps all."
    )
    top_k: int = Field(
        0, ge=0, le=2**31 - 1, description="Only so many of the likeliest tokens; 0 keeps all."
    )
    min_p: float = Field(
        0.0, ge=0, lt=1, description="Only tokens this share as likely as the likeliest; 0 keeps all."
    )
    stop: list[Annotated[str, AfterValidator(_not_empty)]] = Field(
        default_factory=list, description="Strings that end a completion; none is empty."
    )

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of a request where the algorithm sets no others."""
        return SamplingParams(
            self.max_new_tokens, self.temperature, tuple(self.stop), self.top_p, self.top_k, self.min_p
        )


class LocalOptions(SamplingOptions):
    """Options for drawing completions from the run's own model, and how many at once."""

    max_rows: int = Field(256, gt=0, le=2**20, description="Most rows decoded at once.")


def shorter(options: SamplingOptions) -> tuple[str, ...]:
    """The override that halves the length of completions; empty where they are short already."""
    most = options.max_new_tokens
    return (f"max_new_tokens={most // 2}",) if most > 64 else ()
