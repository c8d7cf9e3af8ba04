"""What the exports of adapters and of merged weights have in common: their targets, their folder and their result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..engine import ScalarHead

Target = Literal["peft", "merged", "vllm", "ollama"]
CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


@dataclass
class Exported:
    """The result of an export.

    Attributes:
        folder: that was written.
        use: Python code that loads it.
        commands: that serve it, for a terminal.
        difference: largest difference between a logit, or a score, of the trained model and of the exported one; None:
            nothing was merged.
        scale: largest logit or score of the trained model, for comparison.
        offset: constant that is added to a classifier's scores to get the reward head's; None: it is no reward.
    """

    folder: Path
    use: str
    commands: list[str] = field(default_factory=list)
    difference: float | None = None
    scale: float | None = None
    offset: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of an export.

    Attributes:
        temporary: the folder that is written, and renamed once everything is in it.
        folder: its final path, which texts in the export use.
    """

    temporary: Path
    folder: Path

    @property
    def name(self) -> str:
        """The final path as text."""
        return self.folder.as_posix()


@torch.no_grad()
def classifier_head(head: ScalarHead) -> tuple[Tensor, float]:
    """A reward head, (w . h + b - shift) / scale, as a weight [1, H] and a constant, as a classifier needs it."""
    weight = (head.weight / head.scale).contiguous()
    return weight, float((head.bias - head.shift) / head.scale)
