"""Runs beside each other: seeds fall together, other differences are named."""

import csv
import io

import pytest

from rlhf_peft.analysis.compare import as_csv, compare
from rlhf_peft.analysis.curves import Curve, band, curve
from rlhf_peft.errors import UsageError
from rlhf_peft.runs import History


def test_a_curve_along_each_axis(make_run):
    run = make_run("one")
    assert curve(run, "rl", "reward").x == list(range(1, 9))
    assert curve(run, "rl", "reward", "tokens").x == [100.0 * step for step in range(1, 9)]
    assert curve(run, "rl", "reward", "seconds").x == pytest.approx([2.0 * step for step in range(1, 9)])
    assert curve(run, "rl", "reward", "kl").x == pytest.approx([0.4 * step for step in range(1, 9)])
    held = curve(run, "rl", "eval/reward", "kl")
    assert (held.x, held.y) == ([0.0, 2.0, 4.0], pytest.approx([0.0, 0.4, 0.8]))


def test_the_mean_of_runs_with_an_interval():
    found = band(
        [
            Curve([1, 2, 3], [0.0, 1.0, 2.0]),
            Curve([1, 2, 3], [2.0, 3.0, 4.0]),
            Curve([1, 2, 3], [1.0, 2.0, 3.0]),
        ]
    )
    assert found.x == [1, 2, 3] and found.mean == [1.0, 2.0, 3.0] and found.runs == 3
    assert all(low <= mean <= high for low, mean, high in zip(found.low, found.mean, found.high, strict=True))
    assert found.low[0] == 0.0 and found.high[0] == 2.0


def test_runs_of_different_places_are_read_between_their_points():
    found = band([Curve([0, 10], [0.0, 10.0]), Curve([5, 15], [5.0, 15.0])])
    assert (found.x[0], found.x[-1]) == (5.0, 10.0)
    assert found.mean == pytest.approx(found.x)
    with pytest.raises(UsageError, match="no part of this axis in common"):
        band([Curve([0, 1], [0.0, 0.0]), Curve([2, 3], [0.0, 0.0])])


def test_seeds_fall_together_and_other_keys_are_named(make_run):
    runs = [make_run(f"ppo-{s}", seed=s, slope=0.1 + s / 100) for s in (1, 2, 3)]
    runs += [make_run(f"grpo-{s}", seed=s, slope=0.2, algorithm="grpo") for s in (1, 2)]
    found = compare(runs, by="stages.rl.algorithm.name", metric="reward")
    assert [(group.label, len(group.runs)) for group in found.groups] == [("ppo", 3), ("grpo", 2)]
    assert found.groups[0].band.mean[-1] == pytest.approx(8 * 0.12)
    assert found.differing == {}
    assert list(compare(runs, metric="reward").differing) == ["stages.rl.algorithm.name"]
    rows = list(csv.reader(io.StringIO(as_csv(found))))
    assert rows[0] == ["stages.rl.algorithm.name", "runs", "steps", "reward", "low", "high"]
    assert len(rows) == 1 + 16 and rows[1][:3] == ["ppo", "3", "1"]


def test_what_cannot_be_compared_is_said(make_run):
    runs = [make_run("one")]
    with pytest.raises(
        UsageError, match=r"--by stages.rl.algorithm.nam: .* Did you mean stages.rl.algorithm.name"
    ):
        compare(runs, by="stages.rl.algorithm.nam")
    with pytest.raises(UsageError, match=r"--y rewrd: .* Did you mean .*reward"):
        compare(runs, metric="rewrd")
    with pytest.raises(UsageError, match=r"--stage sft: not all runs have it. They share: rm, rl"):
        compare(runs, stage="sft")


def test_the_figure_is_chosen_where_none_is_named(make_run):
    found = compare([make_run("one")])
    assert (found.stage, found.metric) == ("rl", "eval/reward")


@pytest.mark.parametrize("suffix", [".pdf", ".png", ".svg"])
def test_a_figure_for_a_paper(make_run, tmp_path, suffix):
    from rlhf_peft.analysis.plots import draw_comparison

    draw_comparison(
        compare([make_run("a"), make_run("b", seed=2)], by="lora.r", metric="reward"), tmp_path / f"f{suffix}"
    )
    assert (tmp_path / f"f{suffix}").stat().st_size > 1000


def test_runs_of_the_same_name_stay_apart(make_run, tmp_path):
    one, other = make_run("one"), make_run("two", slope=0.2)
    moved = tmp_path / "elsewhere" / "one"
    moved.parent.mkdir()
    other.path.rename(moved)
    groups = compare([one, History.of(moved)], metric="reward").groups
    assert [group.label for group in groups] == [one.path.as_posix(), moved.as_posix()]
    assert [group.band.runs for group in groups] == [1, 1]
    with pytest.raises(UsageError, match="is named 2 times"):
        compare([one, History.of(one.path)])
