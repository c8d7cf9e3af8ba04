"""`rlhf-peft plan --exact`, from the command to the table."""

import json

import pytest

from rlhf_peft import cli
from rlhf_peft.planning.cards import ROOFLINES, card_of
from rlhf_peft.planning.exact import plan as exact_plan
from rlhf_peft.planning.exact.plan import unavailable
from rlhf_peft.planning.gpus import CARDS, CONTEXT, GB
from tests.dryrun.required import not_possible

RECIPE = {
    "version": 1,
    "name": "exact",
    "model": {"path": "builtin:tiny", "max_length": 64, "tokens_per_forward": 256},
    "stages": [
        {"stage": "sft", "dataset": {"path": "not/read"}, "batch_size": 4},
        {
            "stage": "rl",
            "dataset": {"path": "not/read"},
            "algorithm": {"name": "grpo", "num_generations": 2},
            "sampler": {"name": "cached", "max_new_tokens": 16, "max_rows": 8},
            "rewards": [{"name": "length", "target": 8}],
            "prompts_per_step": 2,
            "eval": {"split": "test", "size": 8},
        },
    ],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command's exit code and output."""
    if reason := unavailable():
        not_possible(reason)
    file = tmp_path_factory.mktemp("recipes") / "exact.yaml"
    file.write_text(json.dumps(RECIPE))

    def run(capsys, *arguments):
        code = cli.execute(["--no-plugins", "plan", str(file), "--exact", *arguments])
        return code, capsys.readouterr()

    return run


def test_every_phase_with_its_memory_and_seconds(run, capsys):
    code, out = run(capsys, "--gpu", "RTX 4060 Ti 16GB", "--json")
    found = json.loads(out.out)
    phases = {(phase["stage"], phase["phase"]): phase for phase in found["phases"]}
    assert code == 0 and found["verdict"] == "fits" and found["remedies"] == []
    assert phases.keys() == {
        ("sft", "update"), ("rl", "rollout"), ("rl", "scoring"), ("rl", "update"), ("rl", "evaluation"),
    }  # fmt: skip
    for phase in phases.values():
        assert 0 < phase["allocated"] <= phase["reserved"]
    for name in ("rollout", "update", "evaluation"):
        phase = phases["rl", name]
        assert 0 < phase["kernel_seconds"] <= phase["seconds"] and phase["launches"] > 100
    assert found["available"]["total"] == 16 * GB


@pytest.mark.slow
def test_a_size_has_no_speed_and_what_does_not_fit_says_what_helps(run, capsys):
    code, out = run(capsys, "--gpu", f"{(CONTEXT + 40 * 2**20) / GB:.4f}GB")
    assert code == 1 and "does not fit: " in out.out and "no seconds" in out.out
    assert "saves" in out.out and "model.gradient_checkpointing=true" in out.out.replace("\n", "")


def test_a_quantizer_that_a_dry_run_does_not_know(run, capsys):
    code, out = run(capsys, "--gpu", "8GB", "model.quantization=int8")
    assert code == 2 and "nf4, fp4, none, not int8" in out.err


def test_without_a_card_one_must_be_named(run, capsys):
    code, out = run(capsys)
    assert code == 2 and "name one" in out.err


def test_without_a_compiler_it_says_so(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out = run(capsys, "--gpu", "8GB")
    assert code == 2 and "C++ compiler" in out.err


def test_what_stops_the_dry_run_is_told(run, capsys, monkeypatch):
    monkeypatch.setattr(exact_plan, "_results", lambda process, count: ["it broke"] * count)
    code, out = run(capsys, "--gpu", "8GB")
    assert code == 2 and "the dry run failed: it broke" in out.err


def test_cards_are_known_by_name_and_their_memory_by_either():
    card, has_speed = card_of("NVIDIA GeForce RTX 4070")
    assert has_speed and card.memory == 12 * GB - CONTEXT and card.bandwidth == 504e9
    card, has_speed = card_of("8GB")
    assert not has_speed and card.memory == 8 * GB - CONTEXT
    assert ROOFLINES.keys() <= CARDS.keys()
