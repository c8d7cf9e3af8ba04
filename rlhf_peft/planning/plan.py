"""The plan of a recipe's memory: what each role takes, and what each phase needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..recipe import RlStage, StageBase
from .gpus import Budget


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a stage.

    Attributes:
        stage: its name.
        name: of the phase.
        items: what is in memory during the phase, by name, in bytes.
    """

    stage: str
    name: str
    items: dict[str, int]

    @property
    def total(self) -> int:
        """The sum of all items, in bytes."""
        return sum(self.items.values())


@dataclass(slots=True)
class Plan:
    """The memory that a recipe needs.

    Attributes:
        parameters: of the model.
        roles: "base" and each role, with what it takes, by name, in bytes.
        phases: in order.
        budget: the memory that there is.
        notes: assumptions, as text.
    """

    parameters: int
    roles: dict[str, dict[str, int]]
    phases: list[Phase]
    budget: Budget
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Phase:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def verdict(self) -> str:
        """The text "fits", "tight" (less than a tenth is left) or "does not fit"."""
        if self.peak.total > self.budget.usable:
            return "does not fit"
        return "tight" if self.peak.total > 0.9 * self.budget.usable else "fits"


Lengths = Callable[[StageBase, int], tuple[int, str]]
"""From a stage and a limit in tokens to the longest prompt or row in tokens, and a note on how that is known."""


EvaluationPrompts = Callable[[RlStage], int]
"""From a stage to the number of held-out prompts that its evaluation answers."""
