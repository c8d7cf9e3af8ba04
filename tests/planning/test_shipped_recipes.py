"""Every shipped recipe fits on the card that its comment names, and the comment says what the plan says."""

import re

import pytest

from rlhf_peft.planning.forecast import forecast
from rlhf_peft.recipe import load, shipped
from rlhf_peft.registry import Registry
from tests.planning.models import write_model

RECIPES = sorted(
    path.stem
    for path in shipped.folder().glob("*.yaml")
    if "one GPU with" in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The plan of a recipe on the card of its comment."""
    folder, registry = tmp_path_factory.mktemp("models"), Registry.load(no_plugins=True)

    def plan(name):
        text = (shipped.folder() / f"{name}.yaml").read_text(encoding="utf-8")
        size = re.search(r"path: Qwen/Qwen3-([\d.]+B)", text)[1]
        card = re.search(r"# Hardware: one GPU with (\d+) GB", text)[1]
        model = write_model(folder, size)
        recipe = load(name, [f"model.path={model}", "device=auto"], plugins=registry)
        return text, forecast(recipe, registry, gpu=f"{card}GB").plan

    return plan


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_and_its_comment_says_how_much_it_needs(planned, name):
    text, plan = planned(name)
    assert plan.verdict == "fits"
    peak = plan.peak
    line = (
        f"# Memory, by `rlhf-peft plan`, not measured: {peak.total / 2**30:.1f} GB at the peak "
        f"({peak.stage}, {peak.name})."
    )
    assert line in text.splitlines()
