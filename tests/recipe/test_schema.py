import json

import pytest
import yaml
from pydantic import ValidationError

from rlhf_peft.recipe import Recipe, document, dump, edit_text, json_schema, load, shipped
from rlhf_peft.recipe.messages import STAGES, keys_of
from rlhf_peft.recipe.places import section_at
from rlhf_peft.recipe.schema import Model
from rlhf_peft.recipe.trl.names import RECIPE_KEYS

from .conftest import GRPO, OPTIONS


def test_every_key_is_described():
    schema = Recipe.model_json_schema()
    for name, section in {"Recipe": schema, **schema["$defs"]}.items():
        for key, about in section.get("properties", {}).items():
            if "const" not in about:
                assert "description" in about, f"{name}.{key}"


def test_every_trl_name_leads_to_a_key_that_exists():
    examples = {kind: {"stage": kind} for kind in STAGES}
    for theirs, ours in RECIPE_KEYS.items():
        if ours.split(".")[-2:-1] in (["algorithm"], ["sampler"], ["quantization"]) or "<name>" in ours:
            continue
        *parents, last = ours.split(".")
        found = False
        for kind, stage in examples.items():
            data = {"stages": [stage]}
            loc = tuple(0 if part == "*" else part for part in parents)
            section = section_at(Recipe, data, loc)
            if ours == "stages.*.init.policy" or ours == "stages.*.init.reward":
                section = STAGES[kind]
                last = "init"
            found = found or (section is not None and last in keys_of(section))
        assert found, f"{theirs} -> {ours}"
        assert theirs not in Recipe.model_fields


def test_json_schema_holds_the_options_of_plugins():
    schema = json_schema(OPTIONS)
    json.dumps(schema)
    rl = schema["$defs"]["RlStage"]["properties"]
    assert rl["algorithm"] == {"oneOf": [{"$ref": "#/$defs/algorithms.ppo"}]}
    ppo = schema["$defs"]["algorithms.ppo"]
    assert ppo["properties"]["name"] == {"const": "ppo"}
    assert ppo["properties"]["beta"]["description"] == "Strength of the KL penalty."
    assert ppo["additionalProperties"] is False
    assert schema["$defs"]["rewards.length"]["required"] == ["name", "target"]
    for name in _references(schema):
        assert name in schema["$defs"], name


def _references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix("#/$defs/")
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_the_page_has_every_key():
    page = document(OPTIONS)
    for model in [Recipe, *STAGES.values(), *(m for kind in OPTIONS.values() for m in kind.values())]:
        for name, field in model.model_fields.items():
            if name != "stage":
                assert f"| `{name}` |" in page
                assert field.description


def test_shipped_recipes():
    names = shipped.names()
    assert len(names) > 0
    assert len(names) == len(list(shipped.folder().glob("*.yaml")))
    for name in names:
        text = shipped.text(name)
        assert text.startswith("#"), f"{name}: opens with a comment"
        assert shipped.summary(name)
        assert load(name).name
        assert yaml.safe_load(text)["version"] == 1


def test_editing_keeps_the_comments_where_values_are_replaced(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GRPO.replace("seed", "seed").replace("name: grpo", "name: grpo  # mine"))
    assert edit_text(str(path)) == path.read_text().replace("# A test recipe.", f"# From the recipe {path}.")
    text = edit_text(str(path), ["name=other", "stages.rl.algorithm.beta=0.2"])
    assert "name: other  # mine\n" in text
    assert "beta: 0.2\n" in text
    assert text.count("\n") == GRPO.count("\n")


def test_editing_with_a_new_key_writes_the_recipe_afresh_under_a_comment_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text(GRPO)
    text = edit_text(str(path), ["seed=5", "stages.sft.dataset.path=here.csv"])
    assert text.startswith(
        f"# From the recipe {path}, with seed=5 stages.sft.dataset.path=here.csv.\nversion: 1\n"
    )
    assert "A test recipe" not in text
    path.write_text(text)
    assert load(path).seed == 5
    assert load(path).stages[0].dataset.path == str(tmp_path / "here.csv")


@pytest.mark.parametrize("name", shipped.names())
def test_a_shipped_recipe_survives_its_own_dump(name, tmp_path):
    recipe = load(name)
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe))
    assert load(path) == recipe


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"x is not defined %}{{ 1 }}": 1}, "cannot be an argument of a chat template"),
        ({"a-b": 1}, "cannot be an argument"),
        ({"": 1}, "cannot be an argument"),
        ({"if": 1}, "cannot be an argument"),
        ({"none": 1}, "cannot be an argument"),
        ({"é": 1}, "cannot be an argument"),
        ({"messages": []}, "is set by rlhf-peft itself"),
        ({"tokenize": True}, "is set by rlhf-peft itself"),
        ({"a": float("inf")}, "not finite"),
        ({"a": {"b": [float("nan")]}}, "not finite"),
    ],
)
def test_arguments_of_a_chat_template_are_names(given, expected):
    with pytest.raises(ValidationError, match=expected):
        Model(path="m", chat_template_kwargs=given)


def test_what_a_chat_template_can_be_given():
    given = {"enable_thinking": False, "_x1": None, "who": {"a b": ["😀", 1.5]}}
    assert Model(path="m", chat_template_kwargs=given).chat_template_kwargs == given


def numbers_of(schema, path=""):
    """Path and schema of every number in a JSON schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield path, schema
        for key, value in schema.items():
            yield from numbers_of(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from numbers_of(value, f"{path}[{index}]")


def test_every_number_has_bounds():
    from rlhf_peft.registry import Registry

    registry = Registry.load(no_plugins=True)
    options = {
        f"{kind}.{name}": registry.options_model(kind, name).model_json_schema()
        for kind in ("algorithms", "samplers", "rewards", "datasets")
        for name in registry.names(kind)
    }
    for where, schema in {"Recipe": Recipe.model_json_schema(), **options}.items():
        for path, number in numbers_of(schema, where):
            if "const" in number:
                continue
            assert {"maximum", "exclusiveMaximum"} & number.keys(), f"{path} has no upper bound"
            assert {"minimum", "exclusiveMinimum"} & number.keys(), f"{path} has no lower bound"


@pytest.mark.parametrize(
    "override",
    [
        "stages.sft.batch_size=99999999999999999999",
        "lora.r=100000000",
        "lora.alpha=1e308",
        "stages.rl.learning_rate=1e30",
        "stages.rl.max_steps=9999999999",
        "stages.rl.rewards.length.weight=-1e30",
        "model.max_length=99999999999",
        "stages.rl.rewards.length.timeout=1e300",
        "stages.sft.warmup=1e300",
    ],
)
def test_numbers_beyond_all_sense_are_refused(recipe_file, override):
    from rlhf_peft.errors import RecipeError

    key = override.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"{key}: expected a number"):
        load(recipe_file, [override])
