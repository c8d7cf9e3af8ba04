"""The memory of the shipped recipes by `plan --exact`, on the card that their comment names.

    python -m tests.planning.exact.shipped

writes it into their comments.
"""

import re
import tempfile
from pathlib import Path

from rlhf_peft.planning.cards import card_of
from rlhf_peft.planning.exact.plan import ExactPlan, Wanted, measured
from rlhf_peft.planning.forecast import planned
from rlhf_peft.recipe import load, shipped
from rlhf_peft.registry import Registry
from tests.planning.models import write_model

RECIPES = sorted(
    path.stem
    for path in shipped.folder().glob("*.yaml")
    if "one GPU with" in path.read_text(encoding="utf-8")
)
LINE = re.compile(r"^# Memory, by `rlhf-peft plan.*$", re.MULTILINE)


def text_of(name):
    """The recipe as it is written."""
    return (shipped.folder() / f"{name}.yaml").read_text(encoding="utf-8")


def comment_of(plan):
    """What the recipe's comment says of an exact plan."""
    peak = plan.peak
    return (
        f"# Memory, by `rlhf-peft plan --exact`, not measured: {peak.reserved / 2**30:.1f} GB reserved at the peak "
        f"({peak.stage}, {peak.name})."
    )


def quick_plans(names, folder, registry):
    """Name of a recipe to the card that its comment names, the recipe and its quick plan."""
    plans = {}
    for name in names:
        text = text_of(name)
        model = write_model(folder, re.search(r"path: Qwen/Qwen3-([\d.]+B)", text)[1])
        gpu = re.search(r"# Hardware: one GPU with (\d+) GB", text)[1] + "GB"
        recipe = load(name, [f"model.path={model}", "device=auto"], plugins=registry)
        plans[name] = gpu, Wanted(recipe, planned(recipe, registry, gpu)[0])
    return plans


def exact_plans(names, folder):
    """Name of a recipe to its exact plan."""
    registry = Registry.load(no_plugins=True)
    plans, found = quick_plans(names, folder, registry), {}
    for gpu in sorted({gpu for gpu, _ in plans.values()}):
        chosen = {name: each for name, (card, each) in plans.items() if card == gpu}
        results = measured(list(chosen.values()), registry, card_of(gpu)[0], no_plugins=True)
        for (name, each), phases in zip(chosen.items(), results, strict=True):
            assert not isinstance(phases, str), (name, phases)
            found[name] = ExactPlan(gpu, False, each.plan.budget, phases)
    return found


def main():
    """Write the comments."""
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in exact_plans(RECIPES, folder).items():
            path = Path(shipped.folder()) / f"{name}.yaml"
            path.write_text(LINE.sub(comment_of(plan), text_of(name)), encoding="utf-8")
            print(name, plan.card, plan.verdict, comment_of(plan))


if __name__ == "__main__":
    main()
