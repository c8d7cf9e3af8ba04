"""Batch rollouts of random numbers."""

from dataclasses import replace

import torch

from rlhf_peft.plugin import Batch, Minibatch, Rollout, SamplingParams

PROMPT = 2


def scored(scores, group=None, lengths=None, seed=0, tag=None, finish=None, **quantities):
    """Rows of random log-probabilities; lengths cycle through 4, 2, 3."""
    n = len(scores)
    lengths = lengths or [(4, 2, 3)[i % 3] for i in range(n)]
    t = PROMPT + max(lengths)
    generator = torch.Generator().manual_seed(seed)
    rollout = Rollout(
        input_ids=[torch.zeros(PROMPT + length, dtype=torch.int64) for length in lengths],
        action_mask=[torch.arange(PROMPT + length) >= PROMPT for length in lengths],
        finish=finish or ["eos"] * n,
        group=torch.arange(n) if group is None else torch.tensor(group),
        tag=tag or ["sample"] * n,
        columns={},
    )
    names = ("old_logps", "ref_logps", "values")
    made = {name: 0.3 * torch.randn(n, t, generator=generator) - 1.0 for name in names}
    return replace(Batch.of(rollout), scores=torch.tensor(scores), **{**made, **quantities})


def minibatch(data, columns, rows=None, of=None, total_rows=None):
    """All rows, or some, as the update gives them to a loss.

    Args:
        data: the batch.
        columns: what the algorithm prepared.
        rows: of the micro-batch; None: all.
        of: rows of the whole minibatch that are trained on; None: those of the micro-batch.
        total_rows: of the minibatch, with those whose loss is 0; None: as many as `of`.
    """
    rows = list(range(len(data))) if rows is None else rows
    of = rows if of is None else of
    return Minibatch(
        mask=data.mask[rows],
        columns={name: column[rows] for name, column in columns.items()},
        total_tokens=int(data.mask[of].sum()),
        total_rows=len(of) if total_rows is None else total_rows,
        old_logps=data.old_logps[rows],
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
