"""Makes the present process one in which everything runs on a simulated card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..engine.loaded_model import LoadedModel
from .cuda import present_card
from .meter import Card
from .mode import DryRun, plain_ids
from .model import fake_loaded


def begin(card: Card, *, cards: int = 1, made_up: Callable[[Tensor], Tensor] = plain_ids) -> DryRun:
    """Let `torch.cuda` answer for a card, and base models be made of their configurations, from now on.

    What is to run on the card runs inside the mode that is returned:

        install()
        with begin(card):
            rlhf_peft.run(recipe)

    Args:
        card: that is not there.
        cards: number of them.
        made_up: values of drawn tokens, when the host reads them.
    """
    run = DryRun(card, made_up)
    present_card(run, cards)

    def load(cls: Any, spec: Any) -> LoadedModel:
        return fake_loaded(spec)

    LoadedModel.load = classmethod(load)  # type: ignore[method-assign, assignment]
    return run
