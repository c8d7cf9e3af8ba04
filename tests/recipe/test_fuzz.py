import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_peft.errors import UsageError
from rlhf_peft.recipe import dump, edit_text, load
from rlhf_peft.recipe.source import parse

from .conftest import GRPO, FakePlugins

PLUGINS = FakePlugins()
TOKENS = [
    "a:",
    " ",
    "- ",
    "\n",
    "  ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    ", ",
    "&x ",
    "*x",
    "<<: ",
    "!!int ",
    "!!set ",
    "? ",
    "stages:",
    "version: 1",
    "'",
    '"',
    ">",
    "#",
    "%",
    "@",
    "`",
    "1e-6",
    "0x",
    "=",
    "~",
    "...",
    "---",
    "!!timestamp ",
    "2001-99-99",
    "!!binary ",
    "!!bool ",
    "!!float ",
    "1_0",
    "0b",
    "\\ud800",
    "\t",
    "\x00",
]
YAML_ISH = st.lists(
    st.one_of(st.sampled_from([*TOKENS, "|"]), st.text(max_size=4)),
    max_size=25,
).map("".join)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["rl", "sft", "ppo"]),
)
KEYS = st.sampled_from(
    ["version", "name", "stages", "stage", "model", "path", "dataset", "eval", "rewards", "lora"]
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(KEYS, st.text(max_size=3)), inner, max_size=4)
    ),
    max_leaves=12,
)
PLACES = st.sampled_from(
    [
        "version",
        "name",
        "seed",
        "output_dir",
        "device",
        "plugins",
        "model",
        "model.path",
        "model.max_length",
        "lora.r",
        "lora.target_modules",
        "stages",
        "stages.sft",
        "stages.rl",
        "stages.rl.stage",
        "stages.rl.name",
        "stages.rl.dataset",
        "stages.rl.dataset.name",
        "stages.rl.algorithm",
        "stages.rl.algorithm.beta",
        "stages.rl.sampler",
        "stages.rl.rewards",
        "stages.rl.rewards.length",
        "stages.rl.eval",
        "stages.rl.eval.rewards",
        "stages.rl.init",
        "stages.rl.lora",
        "stages.sft.dataset.columns",
        "a.b.c",
    ]
)
QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@QUICK
@given(YAML_ISH)
def test_any_text_gives_a_source_or_our_error(text):
    try:
        assert isinstance(parse(text, "x").data, dict)
    except UsageError as error:
        str(error).encode()


@QUICK
@given(st.dictionaries(KEYS, DATA, max_size=6))
def test_any_mapping_gives_a_recipe_or_our_error(data):
    try:
        load(data, plugins=PLUGINS)
    except UsageError as error:
        str(error)


@QUICK
@given(PLACES, DATA)
def test_anything_anywhere_in_a_good_recipe_gives_a_recipe_that_can_be_written_or_our_error(place, value):
    data = yaml.safe_load(GRPO)
    node = data
    *parents, last = place.split(".")
    for part in parents:
        if isinstance(node, list):
            node = next(item for item in node if part in (item.get("name"), item.get("stage")))
        else:
            node = node.setdefault(part, {})
    if isinstance(node, list):
        node.append(value)
    else:
        node[last] = value
    try:
        recipe = load(data, plugins=PLUGINS)
    except UsageError as error:
        assert "\n" in str(error) or str(error)
        return
    assert load(yaml.safe_load(dump(recipe)), plugins=PLUGINS) == recipe


@QUICK
@given(PLACES, st.one_of(YAML_ISH, st.text(max_size=8)))
def test_any_override_gives_a_recipe_or_our_error(place, value):
    try:
        load(yaml.safe_load(GRPO), [f"{place}={value}"], plugins=PLUGINS)
    except UsageError as error:
        str(error).encode()


@QUICK
@given(st.binary(max_size=60))
def test_any_file_gives_our_error(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        load(path)


@QUICK
@given(
    st.sampled_from(["seed", "name", "stages.rl.rewards.length.weight", "stages.rl.sampler.max_new_tokens"]),
    SCALARS,
)
def test_an_edited_recipe_is_what_the_override_would_load(tmp_path, key, value):
    path = tmp_path / "x.yaml"
    path.write_text(GRPO)
    override = (
        f"{key}={yaml.safe_dump(value, allow_unicode=True, width=1000).removesuffix('...' + chr(10)).strip()}"
    )
    try:
        expected = load(path, [override])
    except UsageError:
        return
    text = edit_text(str(path), [override])
    path.write_text(text)
    assert load(path) == expected
    assert text.startswith(f"# From the recipe {path}, with ")
