"""What a plan counts, from a recipe as a whole."""

import json

import pytest

from rlhf_peft.planning import planner
from rlhf_peft.planning.forecast import forecast
from rlhf_peft.planning.gpus import Budget
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry


@pytest.fixture
def planned(tmp_path):
    """Plans a recipe of one stage on the shipped model."""

    def make(stage, rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"path": str(file), **stage.pop("dataset", {})}
        recipe = {
            "version": 1,
            "name": "plan",
            "device": "cpu",
            "model": {"path": "builtin:tiny", "max_length": 128},
            "stages": [{**stage, "dataset": data}],
        }
        return forecast(load(recipe, (), plugins=None), Registry.load(no_plugins=True)).plan

    return make


RL = {
    "stage": "rl",
    "algorithm": {"name": "rloo", "num_generations": 2},
    "sampler": {"name": "cached", "max_new_tokens": 16},
    "rewards": [{"name": "length", "target": 8}],
    "prompts_per_step": 2,
    "max_steps": 1,
}


@pytest.mark.parametrize(("size", "asked"), [(256, 16), (10, 10)])
def test_an_evaluation_is_of_the_prompts_that_there_are(planned, size, asked):
    prompts = [{"prompt": f"Tell me about number {i}."} for i in range(32)]
    plan = planned({**RL, "dataset": {"eval_fraction": 0.5}, "eval": {"size": size}}, prompts)
    assert f"rl: evaluation is planned for {asked} prompts" in plan.notes
    rollout, evaluation = (
        next(p for p in plan.phases if p.name == name) for name in ("rollout", "evaluation")
    )
    assert evaluation.items["logits"] == rollout.items["logits"] * asked // 4


def test_a_sampler_that_keeps_the_best_of_n_writes_n_for_each(planned):
    prompts = [{"prompt": f"Tell me about number {i}."} for i in range(32)]
    best = {"name": "best_of_n", "n": 4, "of": RL["sampler"]}
    once, four_times = (
        planned({**RL, "algorithm": {"name": "rejection_sampling"}, "sampler": sampler}, prompts)
        for sampler in (RL["sampler"], best)
    )
    logits = [
        next(p for p in plan.phases if p.name == "rollout").items["logits"] for plan in (once, four_times)
    ]
    assert logits[1] == 4 * logits[0]


def test_no_evaluation_is_planned_where_there_is_none(planned):
    plan = planned(dict(RL), [{"prompt": f"Tell me about number {i}."} for i in range(32)])
    assert [phase.name for phase in plan.phases] == ["rollout", "scoring", "update"]


def test_on_a_cpu_the_process_is_more_than_its_tensors(planned):
    rows = [{"prompt": "Say it.", "completion": " It is said."} for _ in range(8)]
    update = planned({"stage": "sft", "batch_size": 8, "max_steps": 1}, rows).peak
    assert update.items["libraries"] == planner.LIBRARIES
    assert update.items["between activations"] == int(planner.HOLES * update.items["activations"])


def test_data_is_read_once_however_many_remedies_are_tried(planned, monkeypatch):
    from rlhf_peft.planning import forecast as forecasts
    from rlhf_peft.planning import lengths

    counts = []
    real = lengths.split_rows
    monkeypatch.setattr(lengths, "split_rows", lambda *a, **k: counts.append(1) or real(*a, **k))
    monkeypatch.setattr(forecasts, "budget", lambda *_: Budget("a small machine", "cpu", 2**20, 0))
    prompts = [{"prompt": f"Tell me about number {i}."} for i in range(32)]
    plan = planned({**RL, "dataset": {"eval_fraction": 0.5}}, prompts)
    assert plan.verdict == "does not fit" and len(counts) == 1


@pytest.mark.parametrize(("gpu", "too_small"), [("8GB", False), ("0.0005GB", True)])
def test_states_of_the_reward_trunk_are_counted_on_a_card_as_far_as_they_stay_there(tmp_path, gpu, too_small):
    """2 % of a card."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Tell me."}\n' * 4)
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "Tell me.", "chosen": " Yes.", "rejected": " No."}\n' * 4
    )
    reward = {"stage": "reward_model", "dataset": {"path": str(tmp_path / "pairs.jsonl")}}
    rl = {
        **RL,
        "dataset": {"path": str(tmp_path / "rows.jsonl")},
        "algorithm": {"name": "ppo", "value": "reward"},
        "rewards": [{"name": "learned"}],
        "prompts_per_step": 4,
    }
    recipe = {
        "version": 1,
        "name": "plan",
        "model": {"path": "builtin:tiny", "max_length": 128},
        "stages": [reward, rl],
    }
    registry = Registry.load(no_plugins=True)
    found = forecast(load(recipe, (), plugins=registry), registry, gpu=gpu)
    update = next(phase for phase in found.plan.phases if phase.stage == "rl" and phase.name == "update")
    states, kept = update.items["value states"], found.plan.budget.total // 50
    assert (states == kept) is too_small and 0 < states <= kept
