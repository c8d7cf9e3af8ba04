"""What a run tells to do next fits what it trained."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_peft.api import Result
from rlhf_peft.cli.progress import describe
from rlhf_peft.cli.summary import _samples, next_lines, rows
from rlhf_peft.recipe import load


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        ("reward-model", "rlhf-peft report x", "rlhf-peft chat"),
        ("sft", "rlhf-peft export x", "init.reward"),
        ("ppo", "rlhf-peft chat x", "init.reward"),
        ("quickstart", "recipes copy start my.yaml", "init.reward"),
    ],
)
def test_next_lines_fit_the_stages(tmp_path, monkeypatch, name, there, absent):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(next_lines(Result(Path("runs/x")), load(name)))
    assert there in text
    assert absent not in text


def test_what_a_model_writes_is_no_markup():
    console = Console(width=100, record=True, file=io.StringIO())
    _samples(console, [{"prompt": "p", "before": "x [/INST] y", "after": "arr[i] = b[j]"}])
    output = console.export_text()
    assert "x [/INST] y" in output and "arr[i] = b[j]" in output


def outcome(low, high, n=64.0):
    keys = ("completions/mean_length", "completions/eos_rate", "distinct_2", "kl", "rewards/gold/mean")
    figures = {f"eval/{key}": 0.5 for key in keys}
    change = {"eval/rewards/gold/mean": {"mean": (low + high) / 2, "low": low, "high": high, "n": n}}
    return {"before": figures, "after": figures, "differences": change}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "0.500 -> 0.500  (+0.100 to +0.300 at 95 %, n = 64)"),
        (-0.1, 0.3, "0.500 -> 0.500  (-0.100 to +0.300 at 95 %, n = 64; within noise)"),
    ],
)
def test_a_change_has_its_interval(low, high, expected):
    assert ("rl", "held-out gold", expected) in rows("rl", "rl", outcome(low, high))


def test_ranked_pairs_have_their_interval():
    metrics = {"eval/accuracy": 0.75, "eval/margin": 1.0, "eval/ece": 0.1}
    shown = rows("reward_model", "rm", {"metrics": metrics, "held_out": 100})
    assert shown[0] == (
        "rm",
        "held-out pairs ranked correctly",
        "0.750 of 100 pairs (0.657 to 0.825 at 95 %)",
    )


def test_what_has_not_changed_has_no_interval():
    assert ("rl", "held-out gold", "0.500 -> 0.500") in rows("rl", "rl", outcome(0.0, 0.0))


def test_the_heads_of_an_ensemble_are_one_reward_in_the_progress():
    figures = {
        "reward": 1.0,
        "rewards/learned/mean": 1.0,
        "rewards/learned/reward-0/mean": 2.0,
        "rewards/x/mean": 3.0,
    }
    assert describe(figures) == "reward 1  learned 1  x 3"
