"""`regex`: a score for completions in which a pattern is found."""

from __future__ import annotations

import functools
import re
from typing import Literal

from pydantic import Field, field_validator

from rlhf_peft.plugin import FunctionReward, Options, Target

from . import checks


class RegexOptions(Options):
    """What to look for, and what it is worth."""

    pattern: str = Field(description="Regular expression, in Python's syntax.")
    match: Literal["search", "fullmatch"] = Field(
        "search", description="search: anywhere; fullmatch: the whole completion."
    )
    score: float = Field(1.0, ge=-1e6, le=1e6, description="Where it is found.")
    otherwise: float = Field(0.0, ge=-1e6, le=1e6, description="Where it is not.")
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
    """Runs in a worker process: a pattern that never ends is stopped at the entry's timeout."""

    Options = RegexOptions

    def __init__(self, options: RegexOptions) -> None:
        said = options.model_dump(mode="json")
        target = Target("regex_scores", file=checks.__file__, keywords={"_options": said})
        super().__init__(options, functools.partial(checks.regex_scores, _options=said), "regex", target)
