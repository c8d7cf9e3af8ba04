"""`numeric_answer`: 1 if the completion ends with the right number, as in GSM8K and MATH, else 0."""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field

from rlhf_peft.plugin import FunctionReward, Options, Target, UsageError

from . import checks


class NumericAnswerOptions(Options):
    """Options of `numeric_answer`: the column of the answer, and how it is compared."""

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
    r"""Compares the last `\boxed{}`, else the text after `####`, else the last number.

    The dataset's answer decides how it is compared: as a number, a number with a unit, a percentage, a time, or an
    expression such as a tuple or a polynomial, of which no single number counts. Rows whose answer is prose
    abstain. It runs in a worker process, because math-verify's time limits need one.

    Raises:
        UsageError: math-verify is requested but not installed.
    """

    Options = NumericAnswerOptions

    def __init__(self, options: NumericAnswerOptions) -> None:
        if options.checker == "math-verify" and not checks.has_math_verify():
            raise UsageError(
                "reward numeric_answer: checker is math-verify, which is not installed. pip install 'rlhf-peft[math]', "
                "or checker: own."
            )
        values = options.model_dump()
        target = Target("numeric_scores", file=checks.__file__, keywords={"_options": values})
        super().__init__(
            options, functools.partial(checks.numeric_scores, _options=values), "numeric_answer", target
        )
