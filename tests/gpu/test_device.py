"""What a recipe's `device` means on a machine with a card."""

import json

import pytest

from tests.dryrun.cases import rl, write_files
from tests.gpu.support import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_names_of_the_same_card(name, device, tmp_path, model_of):
    if device.type == "cpu" and name != "auto":
        pytest.skip("means nothing without a card")
    write_files(tmp_path)
    recipe = rl({"name": "grpo", "num_generations": 2})(tmp_path)
    recipe["model"]["path"] = str(model_of(num_hidden_layers=2))
    folder, steps = run(recipe, name)
    hardware = json.loads((folder / "manifest.json").read_text())["hardware"]
    assert hardware["device"] == str(device)
    assert steps[-1]["grad_norm"] > 0
