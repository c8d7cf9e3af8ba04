"""The policy beside its reference on the same prompts with the same seeds."""

import json

import pytest

from rlhf_peft.cli import execute
from rlhf_peft.registry import Registry
from rlhf_peft.trained import open_run
from rlhf_peft.trained.evaluate import evaluate


@pytest.fixture(scope="module")
def found(trained):
    return evaluate(open_run(trained), Registry.load(no_plugins=True), size=8)


def test_every_figure_has_an_interval(found):
    assert found.prompts == 8 and len(found.samples) == 8
    names = {
        "reward",
        "rewards/learned",
        "rewards/tiny-gold",
        "win rate against the reference",
        "win rate by tiny-gold",
    }
    assert names | {"KL to the reference", "tokens", "ended by themselves"} <= set(found.figures)
    for name, value in found.figures.items():
        assert value.low <= value.policy <= value.high, name
    assert 0.0 <= found.figures["win rate against the reference"].policy <= 1.0


def test_the_reference_against_itself_is_a_tie(trained):
    opened = open_run(trained)
    opened.base.add_role("policy", like="reference")
    found = evaluate(opened, Registry.load(no_plugins=True), size=6)
    assert found.figures["win rate against the reference"].policy == 0.5
    assert found.figures["KL to the reference"].policy == pytest.approx(0.0, abs=1e-4)
    assert all(row["policy"] == row["reference"] for row in found.samples)


def test_other_prompts_and_rewards(trained, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Tell me about a fox."}\n{"prompt": "And a bear?"}\n')
    arguments = ["eval", str(trained), "--dataset", str(tmp_path / "p.jsonl"), "--json"]
    assert (
        execute(
            [*arguments, "--rewards", "[{name: length, target: 8}]", "--samples", str(tmp_path / "s.jsonl")]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (
        told["prompts"] == 2
        and "rewards/length" in told["figures"]
        and "rewards/learned" not in told["figures"]
    )
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2
    assert execute([*arguments, "--rewards", "length"]) == 2
    assert "expected a list" in capsys.readouterr().err
