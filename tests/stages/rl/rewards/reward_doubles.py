"""Rewards of a stage without a registry or a model."""

from types import SimpleNamespace

import torch

from rlhf_peft.kit.functions import FunctionOptions, FunctionReward
from rlhf_peft.plugin import Scores
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.registry import Entry
from rlhf_peft.stages.rl.rewards.rewards import Rewards
from rlhf_peft.types import Batch, Rollout


class Fixed:
    """An async reward that always gives the same."""

    roles, timeout = (), None

    def __init__(self, row, **more):
        self.row, self.more = row, more

    async def score(self, given):
        return Scores(row=torch.tensor(self.row), **self.more)


class FakeRegistry:
    """Knows ready rewards, and factories."""

    def __init__(self, rewards):
        self.rewards = rewards

    def make(self, kind, name, options):
        made = self.rewards[name]
        return made(made.Options(**(options or {}))) if isinstance(made, type) else made

    def entry(self, kind, name):
        return Entry(kind, name, self.rewards[name], "a-plugin", "0.3.1")


class Base:
    """Which roles there are."""

    def __init__(self, *roles):
        self.roles = SimpleNamespace(names=roles or ("policy",))


def function(f, name="f"):
    return FunctionReward(FunctionOptions(), f, name)


def rewards(entries, base=None, **made):
    """`entries`: name to keys of its entry."""
    return Rewards(
        FakeRegistry(made), [RewardEntry(name=n, **keys) for n, keys in entries.items()], base or Base()
    )


def answers(n=3, completions=None, columns=None, group=None, dataset_rows=None):
    """A batch of completions of two tokens, the first of which is the row's number, and what decodes them.

    Completions are text, or the messages of `chats`; then the prompts are messages too.
    """
    completions = completions or [f"c{i}" for i in range(n)]
    n = len(completions)
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    prompts = ["p" if isinstance(c, str) else [{"role": "user", "content": "p"}] for c in completions]
    rollout = Rollout(
        [torch.tensor([0, i, n]) for i in range(n)],
        [torch.tensor([False, True, True])] * n,
        ["eos"] * n,
        torch.arange(n) if group is None else torch.tensor(group),
        ["sample"] * n,
        {"prompt": prompts, **(columns or {})},
    )
    return Batch.of(rollout, dataset_rows=dataset_rows), lambda ids: texts[ids[0]]


def begin(made, **rows):
    """Rewards that have begun on `answers(**rows)` for update 4."""
    batch, decode = answers(**rows)
    return made.begin(batch, step=4, generator=torch.Generator(), decode=decode)


def scored(made, **rows):
    """The batch `answers(**rows)`, with what the rewards give for it at update 4."""
    pending = begin(made, **rows)
    made.finish(pending)
    return pending.batch
