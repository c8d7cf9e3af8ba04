"""Every setting of a stage is read by that stage, or refused there."""

import sys
from collections import defaultdict

import pytest
from pydantic import BaseModel

from rlhf_peft import api
from rlhf_peft.errors import RecipeError
from rlhf_peft.recipe import check_settings, load
from rlhf_peft.recipe.schema import (
    Checkpoint,
    Collapse,
    PreferenceStage,
    RewardModelStage,
    RlStage,
    SftStage,
)
from rlhf_peft.registry import Registry

TINY = {"name": "tiny", "size": 16}
SHORT = {"batch_size": 4, "max_steps": 2, "checkpoint": {"every": 1}}
HELD = {"dataset": {**TINY, "part": "demonstrations", "questions": "test", "size": 4}}
PAIRS = {**TINY, "part": "preferences"}
RL = {
    "stage": "rl",
    "dataset": {**TINY, "part": "prompts"},
    "sampler": {"name": "cached", "max_new_tokens": 6},
    "rewards": [{"name": "tiny-gold"}],
    "prompts_per_step": 4,
    "max_steps": 2,
    "checkpoint": {"every": 1, "keep_best": "reward"},
    "eval": {"dataset": {**TINY, "part": "prompts", "questions": "test", "size": 4}},
}
STAGES = {
    "sft": {"stage": "sft", "dataset": {**TINY, "part": "demonstrations"}, "eval": HELD, **SHORT},
    "dpo": {"stage": "preference", "method": "dpo", "dataset": PAIRS, **SHORT},
    "kto": {"stage": "preference", "method": "kto", "dataset": PAIRS, **SHORT},
    "reward_model": {
        "stage": "reward_model",
        "dataset": PAIRS,
        "eval": {"dataset": {**PAIRS, "questions": "test", "size": 4}},
        **{key: value for key, value in SHORT.items() if key != "max_steps"},
    },
    # Six tokens are too few for any completion to end, which counts as a collapse.
    "ppo": {**RL, "algorithm": {"name": "ppo", "num_epochs": 1}, "collapse": {"steps": 1}},
}
READERS = ("rlhf_peft.stages", "rlhf_peft.session", "rlhf_peft.trl_bridge")
"""The rooms that run a stage: what only the recipe's own room or the planner reads would be ignored by a run."""


@pytest.fixture
def reads(monkeypatch):
    """Class to the fields of it that were read while a stage ran."""
    seen = defaultdict(set)
    plain = BaseModel.__getattribute__

    def record(self, name):
        if name in type(self).__pydantic_fields__:
            frame = sys._getframe(1)  # a method of the section may stand between
            if any(f.f_globals["__name__"].startswith(READERS) for f in (frame, frame.f_back)):
                seen[type(self)].add(name)
        return plain(self, name)

    for model in (SftStage, PreferenceStage, RewardModelStage, RlStage, Checkpoint, Collapse):
        monkeypatch.setattr(model, "__getattribute__", record, raising=False)
    evals = {SftStage.model_fields["eval"].annotation, RlStage.model_fields["eval"].annotation}
    for model in {*evals, RewardModelStage.model_fields["eval"].annotation}:
        monkeypatch.setattr(model, "__getattribute__", record, raising=False)
    return seen


def run(folder, name, stage):
    document = {
        "version": 1,
        "name": name,
        "output_dir": str(folder),
        "device": "cpu",
        "model": {"path": "builtin:tiny", "max_length": 64},
        "lora": {"r": 2},
        "stages": [stage],
    }
    registry = Registry.load(no_plugins=True)
    api.run(load(document, (), plugins=registry), registry=registry)


MODELS = {"sft": SftStage, "reward_model": RewardModelStage, "ppo": RlStage}
IDENTITY = {"stage", "name"}
"""What a stage is found by."""


@pytest.mark.parametrize("kind", MODELS)
def test_a_stage_reads_every_key_that_it_has(tmp_path, reads, kind):
    run(tmp_path, kind, STAGES[kind])
    model = MODELS[kind]
    assert set(model.model_fields) - IDENTITY - reads[model] == set()
    evaluation = model.model_fields["eval"].annotation
    assert set(evaluation.model_fields) - reads[evaluation] == set()
    assert set(Checkpoint.model_fields) - reads[Checkpoint] == set()
    if kind == "ppo":
        assert set(Collapse.model_fields) - reads[Collapse] == set()


def test_the_methods_of_preference_stages_read_every_key_between_them(tmp_path, reads):
    for method in ("dpo", "kto"):
        run(tmp_path, method, STAGES[method])
    assert set(PreferenceStage.model_fields) - IDENTITY - reads[PreferenceStage] == set()


REFUSED = {
    "sft.lora.r=2": "only a reward_model stage has its own",
    "dpo.lora.r=2": "only a reward_model stage has its own",
    "ppo.lora.r=2": "only a reward_model stage has its own",
    "ppo.batch_size=4": "Set prompts_per_step",
    "sft.init.reward=runs/x": "expected one of policy",
    "dpo.init.value=runs/x": "expected one of policy",
    "reward_model.init.policy=runs/x": "expected one of reward",
    "sft.eval.rewards=[{name: length}]": "unknown key",
    "dpo.eval.rewards=[{name: length}]": "unknown key",
    "reward_model.eval.prompts=p.txt": "unknown key",
    "reward_model.eval.rewards=[{name: length}]": "unknown key",
    "dpo.desirable_weight=2": "desirable_weight is not used by method: dpo",
    "kto.label_smoothing=0.1": "label_smoothing is not used by method: kto",
}


def document(kind, **changes):
    return {
        "version": 1,
        "name": "r",
        "device": "cpu",
        "model": {"path": "builtin:tiny"},
        "stages": [{**STAGES[kind], "name": kind, **changes}],
    }


@pytest.mark.parametrize("override", REFUSED)
def test_what_a_stage_would_ignore_is_refused(override):
    kind = override.split(".")[0]
    with pytest.raises(RecipeError, match=REFUSED[override]):
        load(document(kind), [f"stages.{override}"], plugins=Registry.load(no_plugins=True))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("value_learning_rate=1e-3", "grpo has no value role"),
        ("init.value=runs/x", "grpo has no value role"),
        ("kl_limit=5", "the KL is not measured"),
    ],
)
def test_what_an_algorithm_would_ignore_is_refused(override, message):
    registry = Registry.load(no_plugins=True)
    grpo = document("ppo", algorithm={"name": "grpo", "num_generations": 2})
    recipe = load(grpo, [f"stages.ppo.{override}"], plugins=registry)
    with pytest.raises(RecipeError, match=message):
        check_settings(recipe, registry)
    check_settings(load(document("ppo"), [f"stages.ppo.{override}"], plugins=registry), registry)


def test_a_reward_model_has_one_beginning():
    both = ["stages.reward_model.lora.r=2", "stages.reward_model.init.reward=runs/x"]
    with pytest.raises(
        RecipeError, match=r"with init\.reward the adapters have the shape of the earlier ones"
    ):
        load(document("reward_model"), both, plugins=Registry.load(no_plugins=True))
