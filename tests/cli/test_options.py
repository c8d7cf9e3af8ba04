"""What verbs of a trained run find in its own folder."""

import pytest

from rlhf_peft.cli.eval import check_names
from rlhf_peft.cli.options import add_code_of
from rlhf_peft.errors import PluginError
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry


def test_functions_of_a_run_are_found_in_its_code(tmp_path, caplog):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(
        "def short(completions, **columns):\n    return [0.0 for _ in completions]\n"
    )
    recipe = load("quickstart")
    stage = recipe.stages[-1]
    entries = [stage.rewards[0].model_copy(update={"name": "short"})]
    recipe.stages[-1] = stage.model_copy(update={"rewards": entries})
    registry = Registry.load((), True)
    with pytest.raises(PluginError, match="unknown reward 'short'"):
        check_names(registry, recipe, [])
    assert add_code_of(registry, tmp_path, recipe) == ["short"]
    check_names(registry, recipe, [])
    assert "the reward short is the function in its code/mine.py" in caplog.text
    assert add_code_of(registry, tmp_path, recipe) == []
