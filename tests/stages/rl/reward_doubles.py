"""Rewards of a stage without a registry or a model."""

import torch

from rlhf_peft.kit.functions import FunctionOptions, FunctionReward
from rlhf_peft.plugin import Scores
from rlhf_peft.recipe.schema import RewardEntry
from rlhf_peft.registry import Entry
from rlhf_peft.stages.rl.rewards.rewards import Rewards


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
        self.roles = roles or ("policy",)


def function(f, name="f"):
    return FunctionReward(FunctionOptions(), f, name)


def rewards(entries, base=None, **made):
    """`entries`: name to keys of its entry."""
    return Rewards(
        FakeRegistry(made), [RewardEntry(name=n, **keys) for n, keys in entries.items()], base or Base()
    )
