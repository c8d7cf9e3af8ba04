import pytest

from rlhf_peft.errors import RecipeError
from rlhf_peft.recipe import load


def refused(source, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(source, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_values_are_yaml_and_items_have_names(recipe_file):
    recipe = load(
        recipe_file,
        [
            "seed=3",
            "stages.rl.rewards.length.weight=0.2",
            "stages.sft.dataset.columns={prompt: Question}",
            "stages.rl.eval.every=5",
            "stages.rl.name=second",
            "model.revision=null",
        ],
    )
    sft, rl = recipe.stages
    assert recipe.seed == 3
    assert rl.rewards[0].weight == 0.2
    assert sft.dataset.columns == {"prompt": "Question"}
    assert (rl.eval.every, rl.name) == (5, "second")


def test_a_renamed_stage_goes_by_its_name_and_by_its_kind(recipe_file):
    recipe = load(
        recipe_file, ["stages.rl.name=rl.two", "stages.rl.two.max_steps=2", "stages.rl.prompts_per_step=4"]
    )
    assert (recipe.stages[1].max_steps, recipe.stages[1].prompts_per_step) == (2, 4)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "seed: expected K=V with a dotted key, such as seed=3, found 'seed'"),
        ("=3", "override: expected K=V"),
        ("a..b=3", "a..b: expected K=V"),
        ("stages.dpo.beta=1", "stages.dpo.beta: stages has no dpo; it has sft, rl"),
        ("stages.rl.rewards.len.weight=1", "stages.rl.rewards has no len; it has length"),
        ("stages.rl.algorithm.name.x=1", "stages.rl.algorithm.name is 'ppo', which has no key x"),
        ("seed=[", "seed: not valid YAML"),
        ("seed={a: 1, a: 2}", "seed.a: given twice"),
        ("seed=2020-01-01", "seed: YAML reads 2020-01-01 as a date"),
        ("lerning=3", "lerning: unknown key"),
        ("stages.sft.batch_size=0", "stages.sft.batch_size: expected a number greater than 0, found 0"),
    ],
)
def test_what_is_wrong_with_an_override(recipe_file, override, expected):
    assert any(line.startswith(expected) or expected in line for line in refused(recipe_file, override))


def test_plain_lists_are_given_whole(recipe_file):
    found = refused(recipe_file, "plugins=[a]", "plugins.a.version=1")
    assert "plugins is a list of plain values; give it whole, such as plugins='[a, b]'" in found[0]


def test_an_empty_list_is_called_one(recipe_file):
    found = refused(recipe_file, "stages.rl.rewards=[]", "stages.rl.rewards.short.weight=0.5")
    assert "stages.rl.rewards is an empty list, so it has no short" in found[0]


def test_two_items_of_one_name_cannot_be_addressed(recipe_file):
    found = refused(recipe_file, "stages.rl.rewards=[{name: a}, {name: a}]", "stages.rl.rewards.a.weight=2")
    assert "2 items of stages.rl.rewards are called a" in found[0]


def test_two_stages_of_one_name_are_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text.replace("stage: rl\n", "stage: rl\n    name: sft\n"))
    assert any("two stages are called sft" in line for line in refused(path))


def test_entries_of_the_command_line_are_reached(recipe_file):
    overrides = ["stages.rl.rewards.mine.weight=0.5", "stages.rl.rewards.mine.on_error=abstain"]
    found = load(recipe_file, overrides, rewards=["mine"]).stages[1].rewards
    assert [(entry.name, entry.weight, entry.on_error) for entry in found] == [
        ("length", 0.5, "stop"),
        ("mine", 0.5, "abstain"),
    ]


@pytest.mark.parametrize("value", ["[]", "null", "[{name: other}]"])
def test_they_are_there_too_where_the_list_is_replaced(recipe_file, value):
    found = load(recipe_file, [f"stages.rl.rewards={value}"], rewards=["mine"]).stages[1].rewards
    assert found[-1].name == "mine"


def test_they_are_reached_in_a_stage_that_has_no_rewards(recipe_file):
    bare = recipe_file.read_text().partition("    rewards:")[0]
    recipe_file.write_text(bare)
    (entry,) = load(recipe_file, ["stages.rl.rewards.mine.weight=2"], rewards=["mine"]).stages[1].rewards
    assert (entry.name, entry.weight) == ("mine", 2.0)
