"""The built-in rewards. A function of a file (`--reward FILE.py:FUNC`) is registered beside them under its own name."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .classifier import Classifier
from .exact_match import ExactMatch
from .http import HttpReward
from .judge import Judge
from .language_model import LanguageModelReward
from .learned import LearnedReward
from .length import LengthReward
from .numeric_answer import NumericAnswer
from .regex import RegexReward
from .repetition import RepetitionReward


@hookimpl
def rlhf_peft_register_rewards(register: Register) -> None:
    """Register the built-in rewards."""
    register("classifier", Classifier)
    register("exact_match", ExactMatch)
    register("http", HttpReward)
    register("judge", Judge)
    register("language_model", LanguageModelReward)
    register("learned", LearnedReward)
    register("length", LengthReward)
    register("numeric_answer", NumericAnswer)
    register("regex", RegexReward)
    register("repetition", RepetitionReward)
