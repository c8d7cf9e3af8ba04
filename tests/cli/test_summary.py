"""What a run tells to do next fits what it trained."""

from pathlib import Path

import pytest

from rlhf_peft.api import Result
from rlhf_peft.cli.summary import next_lines
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
