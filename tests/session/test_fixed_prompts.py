"""Fixed prompts are answered before, during and after a stage, with the same seeds."""

import json

import pytest

from rlhf_peft.stages import rl, sft


def answered(ctx):
    rows = [json.loads(line) for line in (ctx.run.path / "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("split") == "prompts"]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Tell me about a fox.\nTell me about a bear.\n")
    return str(file)


def test_sft_answers_fixed_prompts(make_context, demonstrations, prompts):
    ctx = make_context(
        {
            "stage": "sft",
            "dataset": {"path": demonstrations},
            "batch_size": 8,
            "learning_rate": 2e-2,
            "max_steps": 3,
            "eval": {"every": 2, "prompts": prompts},
        },
        model={"path": "builtin:tiny"},
    )
    sft.run(ctx.recipe.stages[0], ctx)
    rows = answered(ctx)
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 3, 3]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Tell me about a fox."}]
    assert rows[0]["completion"] != rows[4]["completion"]


def test_rl_answers_fixed_prompts_and_an_untrained_policy_repeats_itself(make_context, prompts):
    ctx = make_context(
        {
            "stage": "rl",
            "dataset": {"name": "tiny", "part": "prompts", "size": 8},
            "algorithm": {"name": "ppo", "value": "policy"},
            "sampler": {"name": "cached", "max_new_tokens": 12},
            "rewards": [{"name": "tiny-gold"}],
            "prompts_per_step": 4,
            "learning_rate": 1e-12,
            "value_learning_rate": 1e-12,
            "max_steps": 1,
            "eval": {"prompts": prompts},
        }
    )
    rl.run(ctx.recipe.stages[0], ctx)
    rows = answered(ctx)
    assert [row["step"] for row in rows] == [0, 0, 1, 1]
    assert [row["completion"] for row in rows[:2]] == [row["completion"] for row in rows[2:]]
