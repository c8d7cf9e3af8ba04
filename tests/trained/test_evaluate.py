"""The policy beside its reference on the same prompts with the same seeds."""

import json

import pytest
import torch

from rlhf_peft.cli import execute
from rlhf_peft.plugin import Options, Scores, hookimpl
from rlhf_peft.recipe import RewardEntry
from rlhf_peft.registry import Registry
from rlhf_peft.trained import open_run
from rlhf_peft.trained.evaluate import evaluate


@pytest.fixture(scope="module")
def evaluation(trained):
    return evaluate(open_run(trained), Registry.load(no_plugins=True), size=8)


def test_every_figure_has_an_interval(evaluation):
    assert evaluation.prompts == 8 and len(evaluation.samples) == 8
    names = {"reward", "win rate", "learned", "tiny-gold", "win rate by tiny-gold"}
    assert names | {"KL to the reference", "tokens", "ended by themselves"} <= set(evaluation.metrics)
    for name, value in evaluation.metrics.items():
        assert value.low <= value.policy <= value.high, name
    assert 0.0 <= evaluation.metrics["win rate"].policy <= 1.0


class Shorter:
    """Compares the two answers to a prompt, as a judge does."""

    class Options(Options):
        pass

    roles, timeout = (), None

    def __init__(self, options):
        self.name = "shorter"

    async def score(self, batch):
        groups = batch.rollout.group.tolist()
        assert groups == [i for i in range(len(groups) // 2) for _ in range(2)]
        lengths = [len(text) for text in batch.texts]
        return Scores(
            row=torch.tensor([float(n == min(lengths[i // 2 * 2 :][:2])) for i, n in enumerate(lengths)])
        )


def test_a_reward_that_compares_sees_both_answers(trained):
    registry = Registry.load(no_plugins=True)

    class Plugin:
        @hookimpl
        def rlhf_peft_register_rewards(self, register):
            register("shorter", Shorter)

    registry.add(Plugin(), "shorter")
    evaluation = evaluate(open_run(trained), registry, rewards=[RewardEntry(name="shorter")], size=6)
    lengths = [(len(row["policy"]), len(row["reference"])) for row in evaluation.samples]
    assert evaluation.metrics["reward"].policy == pytest.approx(sum(p <= r for p, r in lengths) / 6)
    assert evaluation.metrics["reward"].reference == pytest.approx(sum(r <= p for p, r in lengths) / 6)
    assert len(lengths) == 6 and any(p != r for p, r in lengths)


def test_the_reference_against_itself_is_a_tie(trained):
    opened = open_run(trained)
    opened.base.roles.add("policy", like="reference")
    evaluation = evaluate(opened, Registry.load(no_plugins=True), size=6)
    assert evaluation.metrics["win rate"].policy == 0.5
    assert evaluation.metrics["KL to the reference"].policy == pytest.approx(0.0, abs=1e-4)
    assert all(row["policy"] == row["reference"] for row in evaluation.samples)


def test_other_prompts_and_rewards(trained, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Tell me about a fox."}\n{"prompt": "And a bear?"}\n')
    arguments = ["eval", str(trained), "--dataset", str(tmp_path / "p.jsonl"), "--json"]
    assert (
        execute(
            [*arguments, "--rewards", "[{name: length, target: 8}]", "--samples", str(tmp_path / "s.jsonl")]
        )
        == 0
    )
    output = json.loads(capsys.readouterr().out)
    assert output["prompts"] == 2 and "reward" in output["figures"] and "learned" not in output["figures"]
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2
    assert execute([*arguments, "--rewards", "length"]) == 2
    assert "expected a list" in capsys.readouterr().err
