"""Pairs of a policy: those on which the reward ensemble disagrees most, and blind ones against the reference."""

import json

import pytest
import torch

from rlhf_peft.cli import execute
from rlhf_peft.labelling import sources
from rlhf_peft.labelling.store import Store
from rlhf_peft.registry import Registry
from rlhf_peft.trained import open_run
from rlhf_peft.trained.prompts import prompts_of

from ..trained.conftest import trained  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def opened(trained):  # noqa: F811
    return open_run(trained)


@pytest.fixture(scope="module")
def registry():
    return Registry.load(no_plugins=True)


@pytest.fixture(scope="module")
def prompts(opened, registry):
    return prompts_of(opened, registry, what="label", size=6)


def test_two_answers_are_chosen_on_which_the_heads_disagree(opened, registry, prompts):
    found = sources.disagreed_pairs(opened, registry, prompts, each=4, most=12)
    assert 0 < len(found) <= 6 and all(pair.a.strip() != pair.b.strip() for pair in found)
    texts, said = sources._sample_role(opened, registry, prompts, "policy", 4, 0, 12)
    assert set(said[0][0]) == {"reward-0", "reward-1"}
    spread = {name: torch.tensor([row[name] for rows in said for row in rows]).std() for name in said[0][0]}
    for pair in found:
        (place,) = [i for i, prompt in enumerate(prompts) if prompt.columns["prompt"] == pair.prompt]

        def disagreement(i, j, place=place):
            gaps = [(said[place][i][name] - said[place][j][name]) / spread[name] for name in spread]
            return float(torch.stack(gaps).std())

        every = [disagreement(i, j) for i in range(4) for j in range(i) if texts[place][i] != texts[place][j]]
        assert pair.priority == pytest.approx(max(every), rel=1e-4)


def test_a_blind_test_has_one_answer_of_each(opened, registry, prompts):
    found = sources.blind_pairs(opened, registry, prompts, most=12)
    assert found and all({pair.from_a, pair.from_b} == {"policy", "reference"} for pair in found)
    assert [(p.a, p.b) for p in sources.blind_pairs(opened, registry, prompts, most=12)] == [
        (p.a, p.b) for p in found
    ]


def test_the_loop_of_a_run(trained, tmp_path, monkeypatch, capsys):  # noqa: F811
    seen = []

    def serve(store, *, among, title, on_ready, **options):
        seen.append((title, len(among)))
        for number in among:
            store.judge(number, "ann", "a")

    monkeypatch.setattr("rlhf_peft.labelling.serve.serve", serve)
    size = ["--size", "6", "--max-new-tokens", "12", "--no-open", "--db", str(tmp_path / "l.db")]
    assert execute(["label", "--run", str(trained), *size]) == 0
    assert execute(["label", "--compare", str(trained), *size]) == 0
    assert [title for title, _ in seen] == ["Which answer is better?", "Blind test: which answer is better?"]
    assert len(Store(tmp_path / "l.db").pairs()) == sum(count for _, count in seen)
    assert ": policy against reference: preferred in 100% of" in capsys.readouterr().out
    (trained / "labels.db").write_bytes((tmp_path / "l.db").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert execute(["label", "--db", str(trained / "labels.db"), "--export", "p.jsonl"]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("next: "))
    assert (
        f"'stages.reward_model.dataset={{path: p.jsonl}}' stages.reward_model.init.reward={trained}" in line
        and "name=trained-2" in line
    )
    assert all("chosen_prob" in json.loads(row) for row in (tmp_path / "p.jsonl").read_text().splitlines())
    (trained / "labels.db").unlink()
