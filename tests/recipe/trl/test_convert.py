"""`recipes from-trl`: what is printed, what cannot be converted, and TRL's defaults."""

import dataclasses
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft import cli
from rlhf_peft.errors import UsageError
from rlhf_peft.recipe import convert, load
from rlhf_peft.recipe.trl.config import (
    DEFAULTS,
    ONLINE,
    REASONS,
    RENAMED_KEYS,
    TRAINERS,
    TRAINERS_OF_KEY,
    TRAINERS_OF_LOSS,
)

from .support import DPO, GRPO, notes_of, only_stage


def test_what_is_printed_is_the_recipe_with_its_notes(made, tmp_path):
    conversion = made(GRPO)
    assert yaml.safe_load(conversion.text) == conversion.data
    comment = [line for line in conversion.text.splitlines() if line.startswith("#")]
    for key, text in conversion.notes:
        assert f"#   {key}: {text}" in comment
    (tmp_path / "mine.yaml").write_text(conversion.text)
    assert load(tmp_path / "mine.yaml").name == conversion.data["name"]


def test_the_command_prints_the_recipe_and_tells_the_rest_on_stderr(tmp_path, capsys):
    (tmp_path / "dpo.yaml").write_text(DPO + "push_to_hub: true\n")
    assert cli.execute(["recipes", "from-trl", str(tmp_path / "dpo.yaml")]) == 0
    out, err = capsys.readouterr()
    assert load(yaml.safe_load(out)).stages[0].method == "dpo"
    assert "push_to_hub: left out: " in err


@pytest.mark.parametrize(
    ("text", "trainer", "message"),
    [
        (
            "learning_rate: 1e-5\n",
            None,
            "no key says which trainer it is for. Name it: --trainer sft|reward|dpo",
        ),
        (
            "num_generations: 8\n",
            None,
            "num_generations could be for grpo or rloo. Name it: --trainer grpo|rloo",
        ),
        ("beta: 0.1\nmax_length: 9\n", None, "could be for dpo or kto. Name it: --trainer dpo|kto"),
        (
            "packing: true\nnum_generations: 8\n",
            None,
            "num_generations, packing do not belong to one trainer",
        ),
        ("beta: 0.1\n", "gpro", "--trainer gpro: unknown. Did you mean grpo?"),
        ("num_generations: 3\n", "grpo", "num_generations: 3 does not divide the 8 completions of a rollout"),
        ("learning_rate: fast\n", "sft", "learning_rate: expected a number, found 'fast'"),
        ("gradient_accumulation_steps: 0\n", "grpo", "expected a whole number above 0, found 0"),
        ("reward_funcs: [a.b, c.d]\nreward_weights: [1]\n", "grpo", "reward_weights: 1 for 2 rewards"),
        ("learning_rate: -1\n", "sft", "stages.sft.learning_rate: expected a number greater than 0"),
        ("- 1\n", "sft", "expected keys"),
        ("a: [\n", "sft", "not valid YAML"),
    ],
)
def test_what_cannot_be_a_recipe_says_why(made, text, trainer, message):
    with pytest.raises(UsageError) as caught:
        made(text, trainer)
    assert message in str(caught.value)
    assert "config.yaml" in str(caught.value) or "--trainer gpro" in str(caught.value)


def test_json_that_is_none(made):
    with pytest.raises(UsageError, match="not valid JSON"):
        made("{", "sft", name="config.json")
    with pytest.raises(UsageError, match="expected an object"):
        made("[1]", "sft", name="config.json")
    with pytest.raises(UsageError, match="no such recipe file"):
        convert("nowhere.yaml", "sft")


@pytest.mark.parametrize(("where", "name"), [("output_dir", "grpo.yaml"), ("run_name", "my-grpo-run.yaml")])
def test_a_name_decides_where_the_keys_leave_two(made, where, name):
    text = "model_name_or_path: m\ndataset_name: d/d\nreward_funcs: accuracy_reward\nnum_generations: 8\n"
    assert only_stage(made(text, name=name))["algorithm"]["name"] == "grpo"
    assert only_stage(made(f"{text}{where}: out/tldr-RLOO\n"))["algorithm"]["name"] == "rloo"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_empty_configuration_is_trls_defaults_and_says_what_is_missing(made, trainer, registry):
    conversion = made("{}", trainer)
    stage, defaults = only_stage(conversion), DEFAULTS[trainer]
    assert stage["learning_rate"] == defaults["learning_rate"]
    assert stage["num_train_epochs"] == 3
    if trainer in ONLINE:
        assert stage["prompts_per_step"] == 8 // defaults.get("num_generations", 1)
        most = {"online_dpo": 64, "ppo": 53}.get(trainer, 512)
        assert stage["sampler"]["max_new_tokens"] == most
    else:
        assert stage["batch_size"] == 8
    assert {"model_name_or_path", "dataset_name"} <= set(notes_of(conversion))
    assert load(conversion.data).seed == 42


def test_the_defaults_are_those_of_the_trl_that_is_installed():
    trl = pytest.importorskip("trl")
    names = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO", "rloo": "RLOO"}
    configs = {trainer: getattr(trl, f"{prefix}Config") for trainer, prefix in names.items()}
    configs["online_dpo"] = pytest.importorskip("trl.experimental.online_dpo").OnlineDPOConfig
    compared = 0
    for trainer, config in configs.items():
        classes = [config, trl.ModelConfig, trl.ScriptArguments]
        fields = {field.name: field for cls in reversed(classes) for field in dataclasses.fields(cls)}
        for key, ours in DEFAULTS[trainer].items():
            theirs = fields[key].default
            if key == "min_p":
                assert theirs is None  # which is 0
            else:
                assert theirs == ours, (trainer, key)
            compared += 1
        for key, owners in TRAINERS_OF_KEY.items():
            if key in fields and key not in ("max_prompt_length",):
                assert trainer in owners, (trainer, key)
    assert compared > 100


KEYS = sorted(
    {
        *DEFAULTS["grpo"],
        *DEFAULTS["kto"],
        *TRAINERS_OF_KEY,
        *REASONS,
        *RENAMED_KEYS,
        "datasets",
        "model_init_kwargs",
        "optim",
    }
)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 64),
    st.floats(),
    st.sampled_from([*TRAINERS_OF_LOSS, "steps", "all-linear", "1e-5", ""]),
    st.lists(st.one_of(st.integers(0, 3), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@given(data=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), trainer=st.sampled_from(TRAINERS))
def test_any_configuration_gives_a_recipe_or_a_reason(tmp_path_factory, data, trainer):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(data))
    try:
        conversion = convert(path, trainer)
    except UsageError as error:
        assert "any.json" in str(error)
        return
    assert load(conversion.data) is not None
    assert yaml.safe_load(conversion.text) == conversion.data
