"""The formulas of the quick plan against a dry run of the same recipes: PPO, GRPO, SFT, DPO, KTO, reward models."""

import importlib.util

import pytest

from rlhf_peft.planning.cards import card_of
from rlhf_peft.planning.exact.plan import Wanted, measured, unavailable
from rlhf_peft.planning.forecast import planned
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry
from tests.dryrun.required import not_possible
from tests.planning.models import write_model

GPU = "RTX 4090"
PPO = {"name": "ppo", "num_epochs": 1, "num_minibatches": 1}
LENGTH = [{"name": "length", "target": 8}]


def recipe(stages, tokens, **model):
    return {
        "version": 1,
        "name": "formulas",
        "model": {"tokens_per_forward": tokens, **model},
        "stages": stages,
    }


def rl(algorithm, tokens, prompts, prompt, new, before=(), rewards=LENGTH, **model):
    stage = {
        "stage": "rl",
        "dataset": {"path": "not/read"},
        "algorithm": algorithm,
        "sampler": {"name": "cached", "max_new_tokens": new},
        "rewards": rewards,
        "prompts_per_step": prompts,
        "max_steps": 1,
    }
    return recipe([*before, stage], tokens, max_length=prompt + new, **model)


def rows(stage, tokens, **model):
    whole = {"dataset": {"path": "not/read"}, "batch_size": 8, "max_steps": 1, **stage}
    return recipe([whole], tokens, max_length=1024, **model)


REWARD_MODEL = {"stage": "reward_model", "dataset": {"path": "not/read"}, "batch_size": 2, "max_steps": 1}
RECOMPUTED = {"gradient_checkpointing": True}
CASES = {
    "ppo, value on the reward trunk": (
        "1.7B",
        rl({**PPO, "value": "reward"}, 4096, 4, 1024, 4, [REWARD_MODEL], [{"name": "learned"}], **RECOMPUTED),
    ),
    "ppo, own value": ("8B", rl({**PPO, "value": "own"}, 4096, 4, 1024, 4, **RECOMPUTED)),
    "ppo, own value, kept": ("0.6B", rl({**PPO, "value": "own"}, 4096, 4, 1024, 4)),
    "ppo, value on the policy": ("4B", rl({**PPO, "value": "policy"}, 4096, 4, 1024, 4)),
    "grpo": ("1.7B", rl({"name": "grpo", "num_generations": 8, "beta": 0.04}, 4096, 2, 448, 16)),
    "grpo, recomputed": (
        "Llama 3 8B",
        rl({"name": "grpo", "num_generations": 8}, 8192, 2, 448, 16, **RECOMPUTED),
    ),
    "grpo, unquantized": (
        "0.6B",
        rl({"name": "grpo", "num_generations": 4}, 4096, 2, 480, 16, quantization="none"),
    ),
    "sft": ("8B", rows({"stage": "sft"}, 8192, **RECOMPUTED)),
    "dpo": ("1.7B", rows({"stage": "preference", "method": "dpo"}, 4096)),
    "kto": ("0.6B", rows({"stage": "preference", "method": "kto"}, 8192, **RECOMPUTED)),
    "reward model": ("4B", rows({"stage": "reward_model"}, 4096)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case to its quick plan and what a dry run measured of it."""
    if reason := unavailable():
        not_possible(reason)
    if importlib.util.find_spec("triton") is None:
        pytest.skip(
            "Triton is not installed, and without it logits take more memory; it comes with torch for CUDA"
        )
    folder, registry = tmp_path_factory.mktemp("models"), Registry.load(no_plugins=True)
    wanted = []
    for model, document in CASES.values():
        document["model"]["path"] = str(write_model(folder, model))
        loaded = load(document, (), plugins=registry)
        wanted.append(Wanted(loaded, planned(loaded, registry, GPU)[0]))
    found = measured(wanted, registry, card_of(GPU)[0], no_plugins=True)
    return {name: (each.plan, phases) for name, each, phases in zip(CASES, wanted, found, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_the_quick_plan_is_within_a_tenth_of_a_dry_run(results, case):
    plan, phases = results[case]
    assert not isinstance(phases, str), phases
    quick = {(phase.stage, phase.name): phase for phase in plan.phases}
    assert quick.keys() == {(phase.stage, phase.name) for phase in phases}
    for phase in phases:
        planned_phase = quick[phase.stage, phase.name]
        assert planned_phase.blocks == pytest.approx(phase.peak, rel=0.1), phase
        assert planned_phase.total == pytest.approx(phase.reserved, rel=0.1), phase
    assert plan.peak.total >= 0.97 * max(phase.reserved for phase in phases)
