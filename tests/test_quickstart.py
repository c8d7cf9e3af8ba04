"""The main job, end to end: `rlhf-peft run quickstart` makes the answers better, by a judge it never saw."""

import json
import math
from itertools import pairwise

import pytest
import torch

import rlhf_peft
from rlhf_peft.api import load_base
from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.builtin.tiny.text import gold_score
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.plugin import Request
from rlhf_peft.recipe import Recipe
from rlhf_peft.registry import Registry
from rlhf_peft.runs import read_manifest, read_metrics, read_samples
from rlhf_peft.session.policy_view import BaseView
from rlhf_peft.stages.documentation import tables
from rlhf_peft.stages.rl.metrics import undocumented

SHORT = [
    "stages.sft.dataset.size=320",
    "stages.reward_model.dataset.size=800",
    "stages.rl.max_steps=12",
    "stages.rl.eval.dataset.size=128",
    "stages.rl.eval.every=null",
]


def run(tmp_path, *overrides, name="quickstart", stages=None):
    recipe = rlhf_peft.load_recipe("quickstart", [f"output_dir={tmp_path}", f"name={name}", *overrides])
    if stages is not None:
        recipe = Recipe.model_validate(
            {**recipe.model_dump(), "stages": [s.model_dump() for s in recipe.stages[:stages]]}
        )
    return recipe, rlhf_peft.run(recipe)


def gold(folder):
    """Gold scores of the held-out answers, [before, after]."""
    rows = [row for row in read_samples(folder) if row.get("split") == "eval"]
    first, last = rows[0]["step"], rows[-1]["step"]
    return [[row["rewards"]["tiny-gold"] for row in rows if row["step"] == step] for step in (first, last)]


def best_of(recipe, folder, prompts, n=16):
    """Mean gold score of the reference's best of n answers to each prompt."""
    base = load_base(recipe)
    base.roles.load("policy", str(folder))
    sampler = CachedSampler(LocalOptions(max_new_tokens=64))
    view = BaseView(base)
    sampler.sync(view, 0)
    ids = [
        torch.tensor(base.tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False))
        for p in prompts
    ]
    rollout = sampler.sample(
        [Request(x, i, 7919 * i + k, sampler.params) for i, x in enumerate(ids) for k in range(n)]
    )
    texts = [view.decode(rollout.completion_ids(row)) for row in range(len(rollout))]
    scores = [gold_score(prompts[row // n][-1]["content"], text) for row, text in enumerate(texts)]
    return sum(max(scores[i : i + n]) for i in range(0, len(scores), n)) / len(prompts)


def rise(before, after):
    """Mean rise over the same prompts, and its standard error."""
    difference = torch.tensor(after) - torch.tensor(before)
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Recipe and result of a shorter quickstart."""
    return run(tmp_path_factory.mktemp("quickstart"), *SHORT)


def test_a_short_quickstart_makes_the_answers_better(short):
    recipe, result = short
    folder = result.folder
    before, after = gold(folder)
    mean, error = rise(before, after)
    assert mean > 2 * error, f"gold score rose by {mean:.3f}, standard error {error:.3f}"
    evals = result.stages["rl"]["before"], result.stages["rl"]["after"]
    assert evals[1]["eval/distinct_2"] > 0.5 * evals[0]["eval/distinct_2"]
    assert evals[1]["eval/completions/eos_rate"] > 0.9 * evals[0]["eval/completions/eos_rate"]
    assert result.stages["reward_model"]["metrics"]["eval/accuracy"] > 0.6

    manifest = read_manifest(folder)
    assert manifest["status"] == "done" and manifest["stages_done"] == ["sft", "reward_model", "rl"]
    assert {
        "recipe.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "adapters/policy/adapter_model.safetensors",
    } <= set(manifest["artifacts"])
    again = rlhf_peft.load_recipe(folder / "recipe.yaml")
    assert again == recipe
    every_figure_is_documented(folder, recipe)


def every_figure_is_documented(folder, recipe):
    documented = tables(Registry.load(no_plugins=True))
    for stage in recipe.stages:
        own = [table for heading, table in documented.items() if heading == stage.stage or "added" in heading]
        lines = read_metrics(folder, stage.name)
        names = {name for line in lines for name in line if name not in ("stage", "step", "time")}
        assert undocumented(names, *own) == [], stage.name


def test_steps_are_in_order_and_figures_finite(short):
    _, result = short
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    for stage in ("sft", "reward_model", "rl"):
        steps = [line["step"] for line in lines if line["stage"] == stage]
        assert all(a <= b for a, b in pairwise(steps)) and steps
    assert all(value is not None for line in lines for value in line.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [17, 18, 19])
def test_the_whole_quickstart(tmp_path, seed):
    recipe, result = run(tmp_path, f"seed={seed}")
    _, reference = run(tmp_path, f"seed={seed}", name="reference", stages=1)
    before, after = gold(result.folder)
    mean, error = rise(before, after)
    rows = [row for row in read_samples(result.folder) if row.get("split") == "eval" and row["step"] == 0]
    best = best_of(recipe, reference.folder, [row["prompt"] for row in rows])
    start = sum(before) / len(before)
    figures = result.stages["rl"]["before"], result.stages["rl"]["after"]
    accuracy = result.stages["reward_model"]["metrics"]["eval/accuracy"]
    first, last = (figures[i]["eval/distinct_2"] for i in range(2))
    print(
        f"\nseed {seed}: {result.seconds:.0f} s, reward accuracy {accuracy:.3f}, "
        f"gold {start:.3f} -> {start + mean:.3f} (se {error:.3f}), best of 16 {best:.3f}, "
        f"share {mean / (best - start):.2f}, KL {figures[1]['eval/kl']:.2f}, "
        f"distinct-2 {first:.3f} -> {last:.3f}"
    )
    assert len(before) == 256
    assert mean > 2 * error
    assert mean >= 0.3 * (best - start)
    assert last > 0.5 * first
