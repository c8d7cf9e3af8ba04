"""A whole reward that worker processes of the tests import."""

import os

import torch

from rlhf_peft.plugin import Options, Scores


class Plain:
    """A whole reward with a plain `def score`."""

    class Options(Options):
        factor: float = 1.0

    roles, timeout = (), None

    def __init__(self, options):
        self.options = options

    def score(self, batch):
        group = batch.rollout.group.float()
        drawn = torch.rand((), generator=batch.generator)
        return Scores(
            row=self.options.factor * group,
            token=torch.stack([mask.float() for mask in batch.rollout.action_mask]),
            metrics={"pid": os.getpid(), "drawn": float(drawn)},
            extra={"text": batch.texts},
        )
