"""Normalisation of each reward, beside TRL's own code."""

import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from rlhf_peft import maths
from rlhf_peft.stages.rl.rewards.aggregate import add_up
from rlhf_peft.types import Scores
from tests.builtin.rewards.doubles import batch

from .reward_doubles import Fixed, rewards

WEIGHTS = torch.tensor([1.0, 0.5])


def trls_advantages(given, generations):
    """The very lines of `GRPOTrainer` for `multi_objective_aggregation="normalize_then_sum"`."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    _, _, after = source.partition('elif self.multi_objective_aggregation == "normalize_then_sum":\n')
    lines = after.partition("\n        else:\n")[0]
    names = {
        **vars(grpo_trainer),
        "self": SimpleNamespace(reward_funcs=[0, 1], reward_weights=WEIGHTS),
        "rewards_per_func": given,
        "num_generations": generations,
        "unscorable_mask": given.isnan().all(1),
        "device": "cpu",
    }
    exec(textwrap.dedent(lines), names)
    return names["advantages"].nan_to_num(0.0)


@pytest.mark.parametrize("spread", [1.0, 0.01])
@pytest.mark.parametrize("abstaining", [0.0, 0.3])
def test_groups_normalised_apart_and_scaled_by_the_batch_are_trls_gdpo(spread, abstaining):
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(24, 2, generator=generator) * spread
    given[torch.rand(24, 2, generator=generator) < abstaining] = torch.nan
    group = torch.arange(24) // 4
    made = rewards(
        {"a": {"normalize": "group"}, "b": {"normalize": "group", "weight": 0.5}}, a=Fixed([]), b=Fixed([])
    )
    rows = batch(n=24, completions=["x"] * 24, group=group.tolist())
    total = add_up(made._members, rows, {"a": Scores(row=given[:, 0]), "b": Scores(row=given[:, 1])})
    mine = maths.group_advantages(total.scores, group, "batch")
    torch.testing.assert_close(mine, trls_advantages(given, 4), atol=1e-5, rtol=0)
