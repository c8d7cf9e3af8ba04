"""What a run tells to do next fits what it trained."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_peft.api import Result
from rlhf_peft.cli.summary import _samples, next_lines
from rlhf_peft.recipe import load


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        ("reward-model", "rlhf-peft report x", "rlhf-peft chat"),
        ("sft", "rlhf-peft export x", "init.reward"),
        ("ppo", "rlhf-peft chat x", "init.reward"),
        ("quickstart", "recipes copy quickstart my.yaml", "init.reward"),
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
    told = console.export_text()
    assert "x [/INST] y" in told and "arr[i] = b[j]" in told
