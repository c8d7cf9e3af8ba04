import pytest

from rlhf_peft.recipe import load


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_paths_in_the_file_start_at_the_file(recipe_file, elsewhere):
    folder = recipe_file.parent
    text = recipe_file.read_text().replace("path: trl-lib/Capybara", "path: pairs.jsonl")
    text = text.replace("path: Qwen/Qwen3-0.6B", "path: base")
    text = text.replace(
        "- stage: rl\n", "- stage: rl\n    eval:\n      prompts: p.txt\n    init:\n      reward: old\n"
    )
    recipe_file.write_text(text)
    (folder / "base").mkdir()
    (folder / "old").mkdir()
    recipe = load(recipe_file)
    assert recipe.model.path == str(folder / "base")
    assert recipe.stages[0].dataset.path == str(folder / "pairs.jsonl")
    assert recipe.stages[1].eval.prompts == str(folder / "p.txt")
    assert recipe.stages[1].init == {"reward": str(folder / "old")}
    assert recipe.output_dir == "runs"


def test_paths_on_the_command_line_start_at_the_current_folder(recipe_file, elsewhere):
    (elsewhere / "base").mkdir()
    (recipe_file.parent / "base").mkdir()
    recipe = load(recipe_file, ["model.path=base", "stages.sft.dataset.path=../x.csv"])
    assert recipe.model.path == str(elsewhere / "base")
    assert recipe.stages[0].dataset.path == str(elsewhere.parent / "x.csv")


def test_an_earlier_run_is_found_in_the_current_folder(recipe_file, elsewhere):
    (elsewhere / "runs" / "base-sft").mkdir(parents=True)
    recipe_file.write_text(
        recipe_file.read_text().replace(
            "- stage: rl\n", "- stage: rl\n    init:\n      policy: runs/base-sft\n"
        )
    )
    assert load(recipe_file).stages[1].init == {"policy": str(elsewhere / "runs" / "base-sft")}


@pytest.mark.parametrize("path", ["trl-lib/Capybara", "builtin:tiny", "https://host/x.jsonl", "hf://a/b.csv"])
def test_what_is_no_path_is_left_alone(recipe_file, elsewhere, path):
    (elsewhere / "trl-lib" / "Capybara").mkdir(parents=True)
    recipe_file.write_text(recipe_file.read_text().replace("trl-lib/Capybara", path))
    assert load(recipe_file).stages[0].dataset.path == path
