"""Every shipped recipe fits on the card that its comment names, and the comment says what `plan --exact` says."""

import re

import pytest

from rlhf_peft.planning.exact.plan import unavailable
from rlhf_peft.registry import Registry
from tests.dryrun.required import not_possible
from tests.planning.exact.shipped import LINE, RECIPES, comment_of, exact_plans, quick_plans, text_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_and_the_quick_plan_agrees_with_its_comment(folder, name):
    _, wanted = quick_plans([name], folder, Registry.load(no_plugins=True))[name]
    line = LINE.search(text_of(name))[0]
    said = float(re.search(r"not measured: ([\d.]+) GB reserved", line)[1])
    assert wanted.plan.verdict == "fits"
    # The comment has one digit behind the point.
    assert wanted.plan.peak.total / 2**30 == pytest.approx(said, rel=0.1, abs=0.05)


@pytest.mark.slow
def test_comments_say_what_the_exact_plan_says(folder):
    """`python -m tests.planning.exact.shipped` writes them."""
    if reason := unavailable():
        not_possible(reason)
    plans = exact_plans(RECIPES, folder)
    assert {name: plan.verdict for name, plan in plans.items()} == dict.fromkeys(RECIPES, "fits")
    lines = {name: LINE.search(text_of(name))[0] for name in RECIPES}
    assert lines == {name: comment_of(plan) for name, plan in plans.items()}
