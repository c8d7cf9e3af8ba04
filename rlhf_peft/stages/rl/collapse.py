"""CollapseGuard of the RL loop: the KL above its limit, and a policy that has collapsed or learns from nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ...errors import GuardError
from ...recipe.schema import RlStage

log = logging.getLogger("rlhf_peft")

ADVICE = {
    "rewards": "all scores of a prompt are equal, so there is nothing to learn from: look at samples.jsonl, make the "
    "reward finer or the prompts neither too easy nor too hard",
    "entropy": "the policy draws almost the same each time: raise algorithm.beta, or lower learning_rate",
    "length": "completions have become very short: raise algorithm.beta, or reward what short answers lack",
    "endless": "raise sampler.max_new_tokens, set missing_eos_penalty, or (a model that thinks aloud) "
    "model.chat_template_kwargs.enable_thinking=false",
}

MANY = 8
"""Completions of a first step from which it is worth a warning that none of them ends."""


class CollapseGuard:
    """Looks at the metrics of every step.

    Args:
        stage: part of the recipe.
    """

    def __init__(self, stage: RlStage) -> None:
        self.stage = stage
        self.first: dict[str, float] = {}
        self.in_a_row: dict[str, int] = dict.fromkeys(ADVICE, 0)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn of what goes wrong, once each time that it begins.

        Raises:
            GuardError: the KL is above the recipe's limit, or something has collapsed and the recipe says stop.
        """
        self._check_kl(step, metrics)
        self._check_first(step, metrics)
        settings = self.stage.collapse
        for name in ("entropy", "completions/mean_length"):
            if name in metrics:
                self.first.setdefault(name, metrics[name])
        reasons = {
            "rewards": self._one_reward(metrics),
            "entropy": self._below("entropy", metrics, settings.entropy),
            "length": self._below("completions/mean_length", metrics, settings.length),
            "endless": self._endless(metrics),
        }
        for name, reason in reasons.items():
            self.in_a_row[name] = self.in_a_row[name] + 1 if reason else 0
            if self.in_a_row[name] != settings.steps:
                continue
            message = f"{self.stage.name}, {settings.steps} steps up to {step}: {reason}; {ADVICE[name]}."
            if settings.action == "stop":
                raise GuardError(f"{message} To go on all the same: collapse.action=warn")
            log.warning(message)

    def _check_kl(self, step: int, metrics: Mapping[str, float]) -> None:
        limit = self.stage.kl_limit
        if limit is not None and metrics.get("kl", 0.0) > limit:
            raise GuardError(
                f"at {self.stage.name} step {step} the KL is {metrics['kl']:.1f} nats a completion, above kl_limit "
                f"{limit:g}. Raise algorithm.beta, or lower learning_rate."
            )

    def _check_first(self, step: int, metrics: Mapping[str, float]) -> None:
        """A policy that was taught to end its answers, and ends none, may be waited for in vain."""
        endless = None if self.first else self._endless(metrics)
        if endless is not None and metrics.get("rows", MANY) >= MANY:
            log.warning(
                "%s, step %d: %s. If the rows that the policy was trained on do end, then either max_new_tokens is too "
                "small for them, or the model ends its turns with a token that neither its tokenizer nor its chat "
                "template names: see samples.jsonl.",
                self.stage.name,
                step,
                endless,
            )

    @staticmethod
    def _one_reward(metrics: Mapping[str, float]) -> str | None:
        if metrics.get("reward_std", 1.0) == 0.0 and metrics.get("rows", 2.0) > 1:
            return f"every completion had the score {metrics['reward']:.4g}"
        if metrics.get("frac_reward_zero_std", 0.0) == 1.0:
            return "in no group did two completions have different scores"
        return None

    @staticmethod
    def _endless(metrics: Mapping[str, float]) -> str | None:
        if metrics.get("completions/clipped_ratio", 0.0) < 1.0:
            return None
        return f"every completion reached {metrics['completions/max_length']:.0f} tokens without an end"

    def _below(self, name: str, metrics: Mapping[str, float], share: float) -> str | None:
        value, first = metrics.get(name), self.first.get(name)
        if value is None or first is None or not value < share * first:
            return None
        return f"{name} is {value:.3g}, and was {first:.3g} in the first step"

    def state_dict(self) -> dict[str, Any]:
        """What it has seen so far."""
        return {"first": dict(self.first), "in_a_row": dict(self.in_a_row)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.first, self.in_a_row = dict(state["first"]), dict(state["in_a_row"])
