"""Batch rollouts of random numbers."""

import torch

from rlhf_peft.plugin import Batch, Minibatch, Rollout, SamplingParams

PROMPT = 2


def scored(scores, group=None, lengths=None, seed=0, tag=None, finish=None, **quantities):
    """Rows of random log-probabilities; lengths cycle through 4, 2, 3."""
    n = len(scores)
    lengths = lengths or [(4, 2, 3)[i % 3] for i in range(n)]
    t = PROMPT + max(lengths)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, t, dtype=torch.bool)
    for i, length in enumerate(lengths):
        mask[i, PROMPT : PROMPT + length] = True
    rollout = Rollout(
        input_ids=[torch.zeros(PROMPT + length, dtype=torch.int64) for length in lengths],
        action_mask=[mask[i, : PROMPT + length] for i, length in enumerate(lengths)],
        finish=finish or ["eos"] * n,
        group=torch.arange(n) if group is None else torch.tensor(group),
        tag=tag or ["sample"] * n,
        columns={},
    )
    made = {
        name: 0.3 * torch.randn(n, t, generator=generator) - 1.0 for name in ("logps", "ref_logps", "values")
    }
    return Batch(rollout=rollout, mask=mask, scores=torch.tensor(scores), **{**made, **quantities})


def minibatch(data, columns, rows=None):
    """All rows, or some, as the update gives them to a loss."""
    rows = list(range(len(data))) if rows is None else rows
    return Minibatch(
        mask=data.mask[rows],
        columns={name: column[rows] for name, column in columns.items()},
        logps=data.logps[rows],
        ref_logps=data.ref_logps[rows],
        old_values=data.values[rows],
    )


class Ask:
    """A RequestContext."""

    def __init__(self, max_new_tokens=8, round=0):
        self.params, self.round = SamplingParams(max_new_tokens), round

    def seed(self, group, sample):
        return 1000 * self.round + 10 * group + sample


class APrompt:
    def __init__(self, index):
        self.ids, self.index, self.columns = torch.tensor([1, 2]), index, {"prompt": str(index)}
