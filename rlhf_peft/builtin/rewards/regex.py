"""`regex`: a score for completions that match a pattern."""

from __future__ import annotations

import functools
import re
from typing import Literal

from pydantic import Field, field_validator

from rlhf_peft.plugin import FunctionReward, Options, Target

from . import checks


class RegexOptions(Options):
    """Options of `regex`: the pattern, and the scores."""

    pattern: str = Field(description="Regular expression, in Python's syntax.")
    match: Literal["search", "fullmatch"] = Field(
        "search", description="search: anywhere; fullmatch: the whole completion."
    )
    score: float = Field(1.0, ge=-1e6, le=1e6, description="Score if the pattern matches.")
    otherwise: float = Field(0.0, ge=-1e6, le=1e6, description="Score if it does not match.")
    flags: tuple[Literal["ignorecase", "multiline", "dotall", "ascii", "verbose"], ...] = Field(
        (), description="Python's flags by name."
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class RegexReward(FunctionReward):
    """Scores completions by a pattern, in a worker process, where the reward's timeout can stop an endless match."""

    Options = RegexOptions

    def __init__(self, options: RegexOptions) -> None:
        values = options.model_dump(mode="json")
        target = Target("regex_scores", file=checks.__file__, keywords={"_options": values})
        super().__init__(options, functools.partial(checks.regex_scores, _options=values), "regex", target)
