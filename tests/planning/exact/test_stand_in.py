"""Stand-ins: rows of the planned length, and a recipe without what a dry run cannot call."""

import json
from pathlib import Path

import pytest

from rlhf_peft.data.inspect import model_encoder
from rlhf_peft.engine.base_spec import load_config
from rlhf_peft.planning.exact import made_up
from rlhf_peft.planning.exact.stand_in import WORDS, stand_in, text, write_model
from rlhf_peft.planning.forecast import planned
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry, base_spec

RL = {
    "stage": "rl",
    "dataset": {"path": "not/read"},
    "algorithm": {"name": "grpo", "num_generations": 2},
    "sampler": {"name": "vllm_server", "url": "http://localhost:1", "max_new_tokens": 16},
    "rewards": [{"name": "learned"}, {"name": "http", "url": "http://localhost:2"}],
    "prompts_per_step": 4,
    "max_steps": 7,
    "init": {"reward": "some/reward"},
}
STAGES = {
    "sft": {"stage": "sft"},
    "reward_model": {"stage": "reward_model"},
    "preference": {"stage": "preference", "method": "dpo"},
}


@pytest.fixture
def made(tmp_path):
    """The stand-in of a recipe with these stages, its plan and its encoder."""

    def make(*stages, **model):
        registry = Registry.load(no_plugins=True)
        document = {
            "version": 1,
            "name": "stand-in",
            "tracking": ["wandb"],
            "model": {"path": "builtin:tiny", "max_length": 96, "tokens_per_forward": 192, **model},
            "stages": [{"dataset": {"path": "not/read"}, **stage} for stage in stages],
        }
        recipe = load(document, (), plugins=registry)
        plan, _ = planned(recipe, registry, "8GB")
        folder = write_model(load_config(base_spec(recipe, registry)), 1, tmp_path)
        changed = stand_in(recipe, plan, registry, folder, tmp_path)
        registry.add(made_up, "made_up")
        load(changed, (), plugins=registry)  # It is a recipe.
        rows = {
            stage["name"]: [
                json.loads(row) for row in Path(stage["dataset"]["path"]).read_text().splitlines()
            ]
            for stage in changed["stages"]
        }
        return changed, plan, rows, model_encoder(str(folder)).without_limit()

    return make


def test_prompts_have_the_planned_length_and_differ(made):
    _, plan, rows, encoder = made(RL)
    assert {len(encoder.prompt(row)) for row in rows["rl"]} == {plan.lengths["rl"]}
    assert len({row["prompt"] for row in rows["rl"]}) == 4


@pytest.mark.parametrize("stage", STAGES)
def test_rows_have_the_planned_length(made, stage):
    changed, plan, rows, encoder = made({**STAGES[stage], "batch_size": 8})
    # Two micro-batches of as many rows as fit.
    each = plan.forward_rows[stage]
    assert changed["stages"][0]["batch_size"] == len(rows[stage]) == 2 * each
    if stage == "sft":
        lengths = {len(encoder.completion(row)) for row in rows[stage]}
    else:
        lengths = {len(ids) for row in rows[stage] for ids in encoder.pair(row)}
    assert lengths == {plan.lengths[stage]} == {96}


def test_servers_and_programs_are_left_out(made):
    changed, *_ = made(RL)
    stage = changed["stages"][0]
    assert stage["sampler"] == {"name": made_up.SAMPLER, "max_new_tokens": 16}
    assert [reward["name"] for reward in stage["rewards"]] == ["learned", made_up.REWARD]
    assert "init" not in stage and stage["max_steps"] == 1 and changed["tracking"] == []


def test_a_text_for_each_number():
    assert len({text(20, number) for number in range(2000)}) == 2000
    assert all(len(text(20, number).split()) == 20 for number in (0, 5, len(WORDS), 1999))
