from pathlib import Path

import pytest
import yaml

from rlhf_peft.errors import RecipeError, UsageError
from rlhf_peft.recipe import dump, load

from .conftest import GRPO


def problems(source, *overrides, plugins=None, rewards=()):
    with pytest.raises(RecipeError) as caught:
        load(source, overrides, plugins=plugins, rewards=rewards)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def change(old: str, new: str) -> str:
    assert GRPO.count(old) == 1
    return GRPO.replace(old, new)


def test_a_good_recipe_has_every_default_those_of_plugins_too(recipe_file, plugins):
    recipe = load(recipe_file, plugins=plugins)
    assert recipe.lora.r == 16
    sft, rl = recipe.stages
    assert (sft.name, rl.name) == ("sft", "rl")
    assert rl.learning_rate == 1e-6
    assert rl.algorithm.options == {"beta": 0.1, "num_epochs": 4, "clip": {"high": 1.0}}
    assert rl.rewards[0].options == {"target": 20}
    assert rl.dataset.options == {"part": "questions"}
    assert recipe.run_folder == Path("runs/grpo")


def test_the_example_of_the_command_lines_contract(tmp_path, monkeypatch, plugins):
    monkeypatch.chdir(tmp_path)
    text = GRPO.replace("beta: 0.1", "bta: 0.1").replace("max_new_tokens", "max_completion_length")
    Path("grpo.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load("grpo.yaml", plugins=plugins)
    head, *rest = str(caught.value).splitlines()
    assert head == "grpo.yaml: 2 problems, nothing was loaded."
    assert set(rest) == {
        "  stages.rl.sampler.max_completion_length (line 20): unknown key. TRL's name; here: max_new_tokens.",
        "  stages.rl.algorithm.bta (line 17): unknown key. Did you mean beta?",
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: grpo", "name: ../x", "name (line 3): '../x' cannot name a run"),
        ("name: grpo", "name: con", "device name on Windows"),
        ("name: grpo", "name: 2024-01-01", "YAML reads 2024-01-01 as a date. Put it in quotes."),
        ("name: grpo", "name: 7", "name (line 3): expected text, found 7"),
        ("name: grpo", "nam: grpo", "nam (line 3): unknown key. Did you mean name?"),
        ("name: grpo\n", "", "name: required, but missing."),
        ("name: grpo", "name: grpo\nname: other", "name (line 4): given twice, first on line 3."),
        ("name: grpo", "name: grpo\nseed: -1", "seed (line 4): expected a number of at least 0, found -1"),
        ("name: grpo", "name: grpo\nseed: true", "seed (line 4): expected a number, found true"),
        ("name: grpo", "name: grpo\nseed: 1.5", "seed (line 4): expected a whole number, found 1.5"),
        ("name: grpo", "name: grpo\nplugins: [gone]", "plugins[0] (line 4): gone is not installed"),
        ("name: grpo", "name: grpo\nlearning_rate: 1", "It belongs to stages.<stage>."),
        ("name: grpo", "name: grpo\n3: 1", "the key 3 is not text to YAML"),
        ("name: grpo", "name: !!python/object:os.system x", "is not allowed in a recipe"),
        ("name: grpo", 'name: "\\ud800"', "surrogate"),
        (
            "model:\n  path: Qwen/Qwen3-0.6B",
            "model: x",
            "model (line 4): expected keys with values, found 'x'",
        ),
        ("path: Qwen", "model_name_or_path: Qwen", "TRL's name; here: path."),
        (
            "path: Qwen",
            "quantization: nf5\n  path: Qwen",
            "unknown quantizers 'nf5'. Known: nf4, none",
        ),
        ("learning_rate: 1e-6", "learning_rate: 0", "expected a number greater than 0, found 0"),
        ("learning_rate: 1e-6", "learning_rate: fast", "expected a number, found 'fast'"),
        ("learning_rate: 1e-6", "learning_rate: .nan", "found nan"),
        (
            "learning_rate: 1e-6",
            "lr: 1e-6",
            "stages.rl.lr (line 11): unknown key. TRL's name; here: learning_rate.",
        ),
        ("learning_rate: 1e-6", "lora_r: 3", "TRL's name; here: lora.r."),
        ("learning_rate: 1e-6", "kl_coef: 0.1", "TRL's name; here: algorithm.beta."),
        ("learning_rate: 1e-6", "packing: true", "It belongs to a stage of kind sft."),
        ("stage: rl", "stage: ppo", "An RL algorithm is written as `stage: rl`"),
        ("stage: rl", "stage: dpo", "Write `stage: preference` and `method: dpo`."),
        ("stage: rl", "stage: rll", "unknown kind 'rll'. Did you mean rl?"),
        ("stage: rl", "stage: 3", "expected one of preference, reward_model, rl, sft, found 3"),
        ("  - stage: rl\n    learning", "  - learning", "Write `stage:` with one of"),
        ("name: toy", "name: tox", "stages.rl.dataset.name (line 13): unknown datasets 'tox'"),
        (
            "part: questions",
            "prt: questions",
            "stages.rl.dataset.prt (line 14): unknown key. Did you mean part?",
        ),
        (
            "path: trl-lib/Capybara",
            "path: a/b\n      spilt: x",
            "spilt (line 10): unknown key. Did you mean split?",
        ),
        (
            "path: trl-lib/Capybara",
            "pth: a/b",
            "stages.sft.dataset.pth (line 9): unknown key. Did you mean path?",
        ),
        ("path: trl-lib/Capybara", "split: train", "stages.sft.dataset (line 8): give `path`"),
        ("target: 20", "target: soon", "stages.rl.rewards.length.target (line 24): expected a whole number"),
        (
            "        target: 20\n",
            "",
            "stages.rl.rewards.length.target (line 22): required, but missing. Tokens wanted.",
        ),
        (
            "beta: 0.1",
            "beta: -1",
            "stages.rl.algorithm.beta (line 17): expected a number greater than 0, found -1",
        ),
        (
            "beta: 0.1",
            "clip: {hgh: 1}",
            "stages.rl.algorithm.clip.hgh (line 17): unknown key. Did you mean high?",
        ),
        ("beta: 0.1", "num_ppo_epochs: 1", "TRL's name; here: num_epochs."),
        ("name: cached", "name: cache", "stages.rl.sampler.name (line 19): unknown samplers 'cache'"),
        (
            "name: length",
            "name: [length]",
            "stages.rl.rewards[0].name (line 22): expected text, found a list",
        ),
        ("name: cached", "name: [cached]", "stages.rl.sampler.name (line 19): expected text, found a list"),
        (
            "weight: 0.5",
            "weight: heavy",
            "stages.rl.rewards.length.weight (line 23): expected a number, found 'heavy'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_key_line_and_remedy(tmp_path, plugins, old, new, expected):
    found = problems(write(tmp_path, change(old, new)), plugins=plugins)
    assert len(found) <= 2, found
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("- a\n", "expected keys such as `version: 1`, found a list"),
        ("just text", "found 'just text'"),
        ("a: [1\nb: 2\n", "YAML (line 2): not valid YAML"),
        ("a: *nowhere\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("[" * 2000, "nested too deeply"),
        (
            "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join(['*a'] * 9)}]\n" for i in range(3000)),
            "too large",
        ),
        ("a: &a {b: *a}\n", "too deeply"),
        ("a: !!bool maybe\n", "'maybe' is not a valid bool"),
        ("a: !!binary aGk=\n", "YAML reads"),
        ("? [1]\n: 2\n", "is not text to YAML"),
        ("a: \0", "not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, expected):
    assert any(expected in line for line in problems(write(tmp_path, text)))


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "too large" in problems(write(tmp_path, "\n".join(levels)))[0]
    merges = ["a0: &a0 {k: 1}"]
    merges += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    assert "too large" in problems(write(tmp_path, "\n".join(merges)))[0]


def test_anchors_and_merge_keys_work_as_in_safe_load(tmp_path, plugins):
    text = change("  - stage: rl\n", "  - stage: rl\n    <<: &more {max_steps: 7, seed_: 1}\n")
    found = problems(write(tmp_path, text), plugins=plugins)
    assert found == ["stages.rl.seed_ (line 11): unknown key. " + found[0].partition("unknown key. ")[2]]
    fine = text.replace(", seed_: 1", "")
    assert load(write(tmp_path, fine), plugins=plugins).stages[1].max_steps == 7


def test_version(tmp_path):
    assert "version: required, but missing. Version of the recipe format. Write version: 1." in problems(
        write(tmp_path, change("version: 1\n", ""))
    )
    later = problems(write(tmp_path, change("version: 1", "version: 2\nnonsense: 1")))
    assert later == [
        "version (line 2): this rlhf-peft reads version 1, found 2. "
        "It was written for a later rlhf-peft: upgrade with pip install -U rlhf-peft."
    ]
    assert "found true" in problems(write(tmp_path, change("version: 1", "version: true")))[0]


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            load(path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8 at byte 9"):
        load(latin)
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UsageError, match="more than 1,000,000 bytes"):
        load(big)


def test_a_byte_order_mark_is_no_problem(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GRPO.encode())
    assert load(path).name == "grpo"


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path, plugins):
    text = change("beta: 0.1", "bta: 1").replace("seed", "").replace("name: grpo", "nam: x")
    found = problems(write(tmp_path, text), "stages.rl.max_steps=-1", plugins=plugins)
    assert [line.partition(":")[0] for line in found] == [
        "nam (line 3)",
        "stages.rl.algorithm.bta (line 17)",
        "name",
        "stages.rl.max_steps",
    ]


def test_a_mapping_is_a_recipe_too(plugins):
    data = yaml.safe_load(GRPO)
    recipe = load(data, ["seed=4"], plugins=plugins)
    assert recipe.seed == 4
    assert "seed" not in data


def test_rewards_of_the_command_line_are_added_where_they_are_not_named(recipe_file, plugins):
    recipe = load(recipe_file, rewards=["length", "mine"])
    assert [(entry.name, entry.weight) for entry in recipe.stages[1].rewards] == [
        ("length", 0.5),
        ("mine", 1.0),
    ]
    bare = load(recipe_file, ["stages.rl.rewards=null"], rewards=["mine"])
    assert [entry.name for entry in bare.stages[1].rewards] == ["mine"]


def test_a_reward_models_lora_overrides_only_what_it_names():
    recipe = load("reward-model", ["lora.r=4", "lora.alpha=9", "stages.reward_model.lora.r=2"])
    (stage,) = [stage for stage in recipe.stages if stage.stage == "reward_model"]
    assert (stage.lora.r, stage.lora.alpha) == (2, 9.0)
    assert load("reward-model").stages[0].lora is None


def test_numbers_written_as_text_are_numbers_and_text_stays_text(recipe_file):
    recipe = load(recipe_file, ["stages.sft.max_steps=1e3", "model.revision='1e6'", "lora.alpha=1e1"])
    assert recipe.stages[0].max_steps == 1000
    assert recipe.model.revision == "1e6"
    assert recipe.lora.alpha == 10.0


def test_dump_gives_the_same_recipe_in_block_style(recipe_file, plugins, tmp_path):
    recipe = load(recipe_file, ["stages.sft.dataset.split='train[:90%]'"], plugins=plugins)
    text = dump(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load(again, plugins=plugins) == recipe
    assert dump(load(again, plugins=plugins)) == text
    assert "{" not in text.replace("{}", "")
    assert text.startswith("version: 1\nname: grpo\n")
    assert "- stage: rl\n" in text
