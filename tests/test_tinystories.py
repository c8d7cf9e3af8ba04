"""Real input: a pretrained story model, a reward model of film reviews, and PPO towards cheerful stories."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_peft.api import load_base
from rlhf_peft.hookspecs import hookimpl
from rlhf_peft.plugin import Options, Scores
from rlhf_peft.recipe import Recipe
from rlhf_peft.registry import Registry
from rlhf_peft.runs import RunFolder
from rlhf_peft.stages import Context, runner

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
MODEL = SHARED / "models" / "tinystories656k"
REVIEWS = SHARED / "sentiment"

pytestmark = pytest.mark.skipif(
    not MODEL.is_dir() or not REVIEWS.is_dir(),
    reason="the real model and reviews are not here (shared/data beside the repository)",
)

GIRLS, BOYS = ("Lily", "Mia", "Anna", "Lucy", "Sue"), ("Tom", "Ben", "Sam", "Tim", "Max")
THINGS = (
    "dog",
    "red ball",
    "little bird",
    "big tree",
    "toy car",
    "cat",
    "boat",
    "garden",
    "cake",
    "kite",
    "bear",
    "fish",
    "big box",
    "blue truck",
    "duck",
    "flower",
    "puppy",
    "star",
    "yellow hat",
    "butterfly",
)


def openings(seed):
    """200 ways to begin a story, in some order."""
    found = [
        f"Once upon a time, there was a little {kind} named {name}. {pronoun} saw a {thing}. "
        for kind, pronoun, names in (("girl", "She", GIRLS), ("boy", "He", BOYS))
        for name in names
        for thing in THINGS
    ]
    random.Random(seed).shuffle(found)
    return found


def review_pairs(seed):
    """A good review over a bad one, at random."""
    sides = []
    for end in ("pos", "neg"):
        lines = (REVIEWS / f"rt-polarity.{end}").read_text(encoding="latin-1").splitlines()
        sides.append([line.strip() for line in lines if line.strip()])
        random.Random(seed).shuffle(sides[-1])
    return [{"chosen": good, "rejected": bad} for good, bad in zip(*sides, strict=True)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Judge:
    """A second reward model that the policy is not trained on."""

    Options = Options
    roles, timeout = ("judge",), None

    def __init__(self, options): ...

    async def score(self, batch):
        return Scores(row=batch.heads["judge"])

    class Plugin:
        @hookimpl
        def rlhf_peft_register_rewards(self, register):
            register("second", Judge)


class Quiet:
    def stage(self, name, total): ...
    def step(self, stage, step, metrics): ...
    def say(self, text): ...
    def close(self): ...


def reward_stage(name, data, held_out, epochs):
    return {
        "stage": "reward_model",
        "name": name,
        "dataset": {"path": data},
        "batch_size": 32,
        "learning_rate": 3e-3,
        "num_train_epochs": epochs,
        "normalize": "standardize",
        "eval": {"dataset": {"path": held_out}},
    }


def rl_stage(tmp_path, seed, steps, size):
    found = openings(seed)
    return {
        "stage": "rl",
        "dataset": {"path": write(tmp_path / "train.jsonl", [{"prompt": text} for text in found[size:]])},
        "algorithm": {
            "name": "ppo",
            "beta": 0.06,
            "kl_target": 8.5,
            "kl_horizon": 100,
            "num_epochs": 2,
            "num_minibatches": 4,
            "cliprange_value": None,
        },
        "sampler": {"name": "cached", "max_new_tokens": 256},
        "rewards": [{"name": "learned"}],
        "missing_eos_penalty": 1.0,
        "prompts_per_step": 32,
        "learning_rate": 2e-3,
        "value_learning_rate": 5e-3,
        "max_steps": steps,
        "eval": {
            "dataset": {
                "path": write(tmp_path / "held-out.jsonl", [{"prompt": text} for text in found[:size]])
            },
            "rewards": [{"name": "second"}],
        },
    }


def train(tmp_path, seed, *, pairs, epochs, steps, held_out=400, size=64):
    """Two reward models, each on its half of the reviews, and PPO on the first of them."""
    reviews = review_pairs(seed)
    held = write(tmp_path / "held.jsonl", reviews[:held_out])
    halves = [
        write(tmp_path / f"{i}.jsonl", reviews[held_out + i * pairs : held_out + (i + 1) * pairs])
        for i in range(2)
    ]
    stages = [
        reward_stage("other", halves[1], held, epochs),
        reward_stage("reward", halves[0], held, epochs),
        rl_stage(tmp_path, seed, steps, size),
    ]
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "stories",
            "seed": seed,
            "output_dir": str(tmp_path / "runs"),
            "device": "cpu",
            "model": {"path": str(MODEL), "quantization": "nf4", "tokens_per_forward": 8192},
            "stages": stages,
        }
    )
    registry = Registry.load(no_plugins=True)
    registry.add(Judge.Plugin(), "judge", "tests", "1", "a test")
    run = RunFolder.create(recipe.output_dir, recipe.name)
    ctx = Context(recipe, load_base(recipe), registry, run, Quiet())
    results = {}
    for stage in recipe.stages:
        results[stage.name] = runner(stage.stage)(stage, ctx)
        if stage.name == "other":
            ctx.base.roles.save("reward-0", tmp_path / "other")
        if stage.name == "reward":
            ctx.base.roles.load("judge", str(tmp_path / "other"), head=True)
    return ctx, results


def rises(results):
    """Rise of each reward on held-out openings, in standard deviations of the reference's scores."""
    out = {}
    for name in ("learned", "second"):
        scores = torch.tensor([sample["scores"][name] for sample in results["rl"]["samples"]])
        out[name] = float((scores[:, 1].mean() - scores[:, 0].mean()) / scores[:, 0].std())
    return out


LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
model, adapter, *prompts = sys.argv[1:]
four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                          bnb_4bit_compute_dtype=torch.float32)
base = AutoModelForCausalLM.from_pretrained(model, quantization_config=four, dtype=torch.float32, device_map="cpu")
policy = PeftModel.from_pretrained(base, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(model)
for prompt in prompts:
    ids = torch.tensor([tokenizer(prompt).input_ids])
    out = policy.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    print(out[0, ids.shape[1]:].tolist())
"""


def greedy(ctx, prompts):
    """What our own sampler writes at temperature 0."""
    from rlhf_peft.plugin import Request, SamplingParams
    from rlhf_peft.session.policy_view import BaseView

    sampler = ctx.registry.make("samplers", "cached", {})
    sampler.sync(BaseView(ctx.base), 0)
    ids = [torch.tensor(ctx.base.tokenizer(prompt).input_ids) for prompt in prompts]
    rollout = sampler.sample([Request(x, i, 0, SamplingParams(40, 0.0)) for i, x in enumerate(ids)])
    return [rollout.completion_ids(i) for i in range(len(prompts))]


def loaded_elsewhere(ctx, prompts):
    """What plain PEFT and transformers write in a new process."""
    adapter = str(ctx.run.adapter_dir("policy"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(MODEL), adapter, *prompts],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.strip().splitlines()]


@pytest.mark.slow
def test_stories_become_more_cheerful(tmp_path):
    ctx, results = train(tmp_path, 0, pairs=960, epochs=1, steps=14, held_out=200, size=32)
    after, before = results["rl"]["after"], results["rl"]["before"]
    assert rises(results)["learned"] > 0.3
    assert 0 < after["eval/kl"] < 10
    assert after["eval/completions/eos_rate"] > 0.9 * before["eval/completions/eos_rate"]
    assert after["eval/distinct_2"] > 0.5 * before["eval/distinct_2"]
    prompts = openings(0)[:3]
    assert loaded_elsewhere(ctx, prompts) == greedy(ctx, prompts)


@pytest.mark.slow
def test_reviews_teach_a_reward_model_and_ppo_follows_it(tmp_path):
    accuracies = []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        ctx, results = train(tmp_path / str(seed), seed, pairs=1965, epochs=4, steps=40)
        before, after, rise = results["rl"]["before"], results["rl"]["after"], rises(results)
        accuracies += [results[name]["metrics"]["eval/accuracy"] for name in ("reward", "other")]
        print(
            f"\nseed {seed}: accuracy {accuracies[-2]:.3f} and {accuracies[-1]:.3f}, rise {rise}, "
            f"KL {after['eval/kl']:.2f}, EOS {before['eval/completions/eos_rate']:.2f} -> "
            f"{after['eval/completions/eos_rate']:.2f}, distinct-2 {before['eval/distinct_2']:.3f} -> "
            f"{after['eval/distinct_2']:.3f}"
        )
        assert after["eval/kl"] <= 10
        assert rise["learned"] >= 1.0
        assert rise["second"] > 0.0
        assert after["eval/completions/eos_rate"] > 0.9 * before["eval/completions/eos_rate"]
        assert after["eval/distinct_2"] > 0.5 * before["eval/distinct_2"]
        prompts = openings(seed)[:4]
        assert loaded_elsewhere(ctx, prompts) == greedy(ctx, prompts)
    assert sum(accuracies) / len(accuracies) >= 0.65
