"""Factories of rewards, good and bad, for the tests of the conformance checks."""

import torch

from rlhf_peft.plugin import (
    Options,
    Scores,
)


class Nothing(Options):
    """No options."""


def with_(base, **changes):
    """A factory that differs from a good one in something."""
    return type("Bad", (base,), changes)


class Letters:
    Options = Nothing
    roles, timeout = (), None

    def __init__(self, options):
        self.options = options

    async def score(self, batch):
        return Scores(row=torch.tensor([float(len(text)) for text in batch.texts]))


def giving(make):
    async def score(self, batch):
        return make(batch)

    return score
