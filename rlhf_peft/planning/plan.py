"""The plan of a recipe's memory: what each role takes, and what each phase needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..recipe import RlStage, StageBase
from .gpus import Budget

ALLOCATOR = "allocator"
"""Name of the item that is what torch's allocator holds on a GPU beyond the tensors."""


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

    @property
    def blocks(self) -> int:
        """Bytes of tensors: all items but what the allocator of a GPU holds beyond them."""
        return self.total - self.items.get(ALLOCATOR, 0)


@dataclass(slots=True)
class Plan:
    """The memory that a recipe needs.

    Attributes:
        parameters: of the model.
        roles: "base" and each role, with what it takes, by name, in bytes.
        phases: in order.
        budget: the memory that there is.
        notes: assumptions, as text.
        lengths: name of a stage to the tokens of its longest prompt (RL) or row.
        forward_rows: name of a stage that reads rows to how many rows (pairs) go through the model at once.
        evaluation_prompts: name of an RL stage to the prompts that its evaluation answers at once, where they need more
            memory than those of a step.
    """

    parameters: int
    roles: dict[str, dict[str, int]]
    phases: list[Phase]
    budget: Budget
    notes: list[str] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    forward_rows: dict[str, int] = field(default_factory=dict)
    evaluation_prompts: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> Phase:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def verdict(self) -> str:
        """The text "fits", "tight" (less than a tenth is left) or "does not fit"."""
        return verdict_of(self.peak.total, self.budget)


def verdict_of(size: int, budget: Budget) -> str:
    """The verdict about so many bytes: "fits", "tight" (less than a tenth is left) or "does not fit"."""
    if size > budget.usable:
        return "does not fit"
    return "tight" if size > 0.9 * budget.usable else "fits"


Lengths = Callable[[StageBase, int], tuple[int, str]]
"""From a stage and a limit in tokens to the longest prompt or row in tokens, and a note on how that is known."""


EvaluationPrompts = Callable[[RlStage], int]
"""From a stage to the number of held-out prompts that its evaluation answers."""
