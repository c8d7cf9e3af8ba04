"""`numeric_answer`: 1 where the completion ends on the right number, as in GSM8K and MATH."""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field

from rlhf_peft.plugin import FunctionReward, Options, Target, UsageError

from . import checks


class NumericAnswerOptions(Options):
    """Which column holds the answer, and who compares."""

    column: str | None = Field(
        None, description="Column with the right answer; null: `answer`, else `solution`."
    )
    checker: Literal["auto", "own", "math-verify"] = Field(
        "auto",
        description="own: numbers, units and times by value, other expressions by their form; math-verify: those by "
        "value, too (pip install 'rlhf-peft[math]'); auto: the latter where it is installed.",
    )
    tolerance: float = Field(
        0.0, ge=0, le=1e6, description="Largest relative difference; 0: exactly the same number."
    )


class NumericAnswer(FunctionReward):
    r"""Compares the last `\boxed{}`, else what follows `####`, else the last number.

    A row's own answer is compared as what it is: a number, a number with a unit, a percentage, a time, or an expression
    such as a tuple or a polynomial, of which no single number counts. Rows whose own answer is prose abstain.
    Runs in a worker process, as math-verify's time limits demand.

    Raises:
        UsageError: math-verify is asked for and not installed.
    """

    Options = NumericAnswerOptions

    def __init__(self, options: NumericAnswerOptions) -> None:
        if options.checker == "math-verify" and not checks.has_math_verify():
            raise UsageError(
                "reward numeric_answer: checker is math-verify, which is not installed. pip install 'rlhf-peft[math]', "
                "or checker: own."
            )
        said = options.model_dump()
        target = Target("numeric_scores", file=checks.__file__, keywords={"_options": said})
        super().__init__(
            options, functools.partial(checks.numeric_scores, _options=said), "numeric_answer", target
        )
