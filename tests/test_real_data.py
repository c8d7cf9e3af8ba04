"""Published preferences and questions, in their own formats, through every stage, with two published tokenizers.

The base is random, so nothing is learnt here that means anything: what counts is that real rows go in as they are
and that what comes out is whole.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import rlhf_peft
from rlhf_peft import cli
from rlhf_peft.builtin.rewards.function import FunctionReward
from rlhf_peft.errors import DataError
from rlhf_peft.hookspecs import hookimpl
from rlhf_peft.registry import Registry
from rlhf_peft.runs import read_manifest, read_metrics, read_samples

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
ULTRAFEEDBACK = DATA / "preferences" / "ultrafeedback.jsonl"
HH = DATA / "preferences" / "hh_harmless.jsonl"
GSM8K = DATA / "maths" / "gsm8k.jsonl"

pytestmark = pytest.mark.skipif(
    not (DATA / "README.md").is_file(), reason=f"the published data is not at {DATA}"
)

ROWS = 24
SIZES = {"minimind": (320, 4), "qwen2": (128, 2)}
"""Tokens of the longest row, and rows of an update: 151,646 logits a token take their time."""
NEAR = '''\
import re


def near(completions, answer, **columns):
    """Minus the distance between the number of an answer and the right one, in thousands."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [-abs(number(text) - number(right)) / 1000 for text, right in zip(texts, answer, strict=True)]


def number(text):
    found = re.search(r"#### *(-?[\\d,]+)", text)
    return float(found[1].replace(",", "")) if found else 0.0
'''


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The command line takes the package's log to itself; afterwards it is as it was."""
    log = logging.getLogger("rlhf_peft")
    before = log.level, log.propagate, [*log.handlers]
    yield
    log.level, log.propagate, log.handlers = before


@pytest.fixture(scope="session", params=["minimind", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base for a published tokenizer, saved beside it."""
    return make_model(request.param, tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture(scope="session")
def minimind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for the small one only."""
    return make_model("minimind", tmp_path_factory.mktemp("base") / "minimind")


def make_model(name: str, folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(folder: Path, model: Path, *stages: dict[str, Any], **changes: Any) -> Path:
    """A recipe for a few updates, as a file."""
    longest, rows = SIZES[model.name]
    common = {"max_steps": 1, "learning_rate": "1e-3"}
    held = {"quantization": "none", "max_length": longest, "tokens_per_forward": 4 * longest}
    said = {
        "version": 1,
        "name": "one",
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "model": {"path": str(model), **held, **changes},
        "lora": {"r": 2, "alpha": 4},
        "stages": [
            {**common, **({} if stage["stage"] == "rl" else {"batch_size": rows}), **stage}
            for stage in stages
        ],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    return path


def data(path: Path, rows: int | str = ROWS, **more: Any) -> dict[str, Any]:
    split = f"train[:{rows}]" if isinstance(rows, int) else rows
    return {"path": str(path), "split": split, "on_bad_row": "skip", **more}


def rl(dataset: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "stage": "rl",
        "dataset": dataset,
        "algorithm": {"name": "ppo", "num_epochs": 1, "num_minibatches": 1, "value": "policy"},
        "sampler": {"name": "cached", "max_new_tokens": 6},
        "rewards": [{"name": "near"}],
        "prompts_per_step": 4,
        **changes,
    }


def first(path: Path, count: int = ROWS) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def turns(text: str) -> list[dict[str, str]]:
    """A dialogue of HH as messages."""
    pieces = re.split(r"\n\n(Human|Assistant): ?", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [said(roles[who], words) for who, words in zip(pieces[::2], pieces[1::2], strict=True)]


def check(result: rlhf_peft.Result, stages: dict[str, int], roles: set[str]) -> None:
    """The run folder is whole, its figures are numbers, its adapters were trained."""
    manifest = read_manifest(result.folder)
    assert manifest["status"] == "done" and manifest["stages_done"] == list(stages) == list(result.stages)
    assert (result.folder / "recipe.yaml").is_file()
    lines = read_metrics(result.folder)
    for stage, updates in stages.items():
        mine = [line for line in lines if line["stage"] == stage]
        assert sum(line["step"] > 0 and "learning_rate" in line for line in mine) == updates
        figures = [value for line in mine for value in line.values() if isinstance(value, int | float)]
        assert len(figures) > 5 and all(math.isfinite(value) for value in figures)
    assert {path.name for path in (result.folder / "adapters").iterdir()} == roles
    for role in roles:
        weights = load_file(result.folder / "adapters" / role / "adapter_model.safetensors")
        assert any("lora_B" in name and value.abs().max() > 0 for name, value in weights.items())
        assert all(value.isfinite().all() for value in weights.values())
        assert (result.folder / "adapters" / role / "head.safetensors").is_file() == (role != "policy")
        name = f"adapters/{role}/adapter_model.safetensors"
        assert name in manifest["artifacts"]


def check_plain_peft(run: Path, base: Path) -> None:
    """The policy loads without this package, and changes what the base says."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)("How many clips did Natalia sell?").input_ids])
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        after = PeftModel.from_pretrained(plain, run / "adapters" / "policy").eval()(input_ids=ids).logits
    assert after.isfinite().all() and not torch.equal(before, after)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Built-ins, and the reward for GSM8K."""
    (tmp_path / "rewards.py").write_text(NEAR, encoding="utf-8")
    made = Registry.load(no_plugins=True)
    made.add_reward_function(tmp_path / "rewards.py", "near", FunctionReward)
    return made


def check_near(run: Path, questions: dict[str, str]) -> None:
    """Each score follows from the `answer` that the file has beside the question."""
    number = {}
    exec(NEAR, number)
    samples = read_samples(run)
    assert samples
    for sample in samples:
        prompt = sample["prompt"] if isinstance(sample["prompt"], str) else sample["prompt"][-1]["content"]
        (score,) = number["near"]([sample["completion"]], answer=[questions[prompt]])
        assert sample["rewards"]["near"] == pytest.approx(score, abs=1e-6) and score < 0


# --- in their own formats ---


def test_ultrafeedback_into_reward_model_and_dpo(model: Path, tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        model,
        {"stage": "reward_model", "dataset": data(ULTRAFEEDBACK, 32, eval_fraction=0.3), "max_steps": 2},
        {"stage": "preference", "method": "dpo", "dataset": data(ULTRAFEEDBACK)},
        max_length=256,
        tokens_per_forward=512,
    )
    result = rlhf_peft.run(rlhf_peft.load_recipe(path))
    check(result, {"reward_model": 2, "preference": 1}, {"policy", "reward-0"})
    assert result.stages["reward_model"]["pairs"] > 4 and result.stages["reward_model"]["held_out"] > 0
    assert result.stages["preference"]["loss_first"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.slow
def test_hh_into_reward_model_and_dpo(model: Path, tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        model,
        {"stage": "reward_model", "dataset": data(HH)},
        {"stage": "preference", "method": "dpo", "dataset": data(HH)},
        quantization="nf4",
    )
    result = rlhf_peft.run(rlhf_peft.load_recipe(path))
    check(result, {"reward_model": 1, "preference": 1}, {"policy", "reward-0"})
    assert result.stages["reward_model"]["pairs"] > 12
    assert result.stages["preference"]["loss_first"] == pytest.approx(math.log(2), abs=1e-3)


def test_hh_into_kto(minimind: Path, tmp_path: Path) -> None:
    stage = {"stage": "preference", "method": "kto", "dataset": data(HH, eval_fraction=0.2)}
    result = rlhf_peft.run(rlhf_peft.load_recipe(recipe(tmp_path, minimind, stage, quantization="nf4")))
    check(result, {"preference": 1}, {"policy"})
    assert result.stages["preference"]["loss_first"] == pytest.approx(0.5, abs=1e-3)
    assert 0 <= result.stages["preference"]["eval_rewards/accuracies"] <= 1


def test_gsm8k_into_sft_and_rl(model: Path, tmp_path: Path, registry: Registry) -> None:
    path = recipe(
        tmp_path,
        model,
        {"stage": "sft", "dataset": data(GSM8K, columns={"prompt": "question", "completion": "answer"})},
        rl(data(GSM8K, columns={"prompt": "question"}), max_steps=2),
        quantization="nf4",
    )
    result = rlhf_peft.run(rlhf_peft.load_recipe(path, registry=registry), registry=registry)
    check(result, {"sft": 1, "rl": 2}, {"policy"})
    check_near(result.folder, {row["question"]: row["answer"] for row in first(GSM8K)})


# --- as conversations, through the chat template ---


@pytest.mark.slow
def test_conversations_of_ultrafeedback_and_hh(model: Path, tmp_path: Path) -> None:
    spoken = [
        {
            "prompt": [said("user", row["prompt"])],
            "chosen": [said("assistant", row["chosen"])],
            "rejected": [said("assistant", row["rejected"])],
        }
        for row in first(ULTRAFEEDBACK, 64)
    ]
    dialogues = [{name: turns(row[name]) for name in ("chosen", "rejected")} for row in first(HH)]
    pairs = data(write(tmp_path / "ultrafeedback.jsonl", spoken), 64)
    path = recipe(
        tmp_path,
        model,
        {"stage": "reward_model", "dataset": pairs},
        {"stage": "preference", "dataset": data(write(tmp_path / "hh.jsonl", dialogues), system="Be kind.")},
    )
    result = rlhf_peft.run(rlhf_peft.load_recipe(path))
    check(result, {"reward_model": 1, "preference": 1}, {"policy", "reward-0"})
    assert result.stages["preference"]["loss_first"] == pytest.approx(math.log(2), abs=1e-3)


def test_conversations_of_gsm8k_begin_with_the_templates_prompt(
    model: Path, tmp_path: Path, registry: Registry
) -> None:
    rollouts: list[Any] = []

    @hookimpl
    def rlhf_peft_rollout_end(run: Any, stage: str, step: int, batch: Any) -> None:
        rollouts.append(batch.rollout)

    registry.add(
        SimpleNamespace(rlhf_peft_rollout_end=rlhf_peft_rollout_end), "watcher", "tests", "1", "test"
    )
    rows = [
        {
            "prompt": [said("user", row["question"])],
            "completion": [said("assistant", row["answer"])],
            "answer": row["answer"],
        }
        for row in first(GSM8K)
    ]
    source = data(write(tmp_path / "gsm8k.jsonl", rows))
    path = recipe(tmp_path, model, {"stage": "sft", "dataset": source}, rl(source))
    result = rlhf_peft.run(rlhf_peft.load_recipe(path, registry=registry), registry=registry)
    check(result, {"sft": 1, "rl": 1}, {"policy"})
    check_near(result.folder, {row["question"]: row["answer"] for row in first(GSM8K)})
    check_plain_peft(result.folder, model)

    (rollout,) = rollouts
    tokenizer = AutoTokenizer.from_pretrained(model)
    for ids, mask, prompt in zip(
        rollout.input_ids, rollout.action_mask, rollout.columns["prompt"], strict=True
    ):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert ids[: len(expected)].tolist() == expected
        assert not mask[: len(expected)].any() and mask[len(expected) :].all() and 0 < mask.sum() <= 6
        assert text.rstrip().endswith(("assistant", "</think>")) and prompt[-1]["content"] in text


# --- rows that cannot be used ---

WHERE_BAD = "train[300:312]"
"""Holds row 307, whose two answers are the same."""


def test_a_bad_row_of_ultrafeedback_is_named_or_left_out(
    minimind: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data(ULTRAFEEDBACK, WHERE_BAD)
    stage = {"stage": "reward_model", "dataset": {**source, "on_bad_row": "error"}}
    path = recipe(tmp_path, minimind, stage, max_length=2048, tokens_per_forward=4096)
    with pytest.raises(DataError) as caught:
        rlhf_peft.run(rlhf_peft.load_recipe(path))
    assert str(caught.value) == (
        f"{ULTRAFEEDBACK}, row 307: chosen and rejected are the same. Mend or remove it, or leave such rows out: "
        "stages.reward_model.dataset.on_bad_row=skip"
    )
    assert not (tmp_path / "runs").exists()

    monkeypatch.setattr(logging.getLogger("rlhf_peft"), "propagate", True)
    result = rlhf_peft.run(rlhf_peft.load_recipe(path, ["stages.reward_model.dataset.on_bad_row=skip"]))
    check(result, {"reward_model": 1}, {"reward-0"})
    assert result.stages["reward_model"]["pairs"] == 11
    assert (
        f"{ULTRAFEEDBACK}: left out 1 of 12 rows: 1 with chosen equal to rejected (first: row 307)"
        in caplog.text
    )


# --- the command line ---


def test_a_reward_function_on_the_command_line(
    minimind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rewards.py").write_text(NEAR, encoding="utf-8")
    path = recipe(tmp_path, minimind, rl(data(GSM8K, columns={"prompt": "question"})), quantization="nf4")
    assert cli.execute(["run", str(path), "--reward", f"{tmp_path / 'rewards.py'}:near", "seed=3"]) == 0
    out, err = capsys.readouterr()
    assert "one: done in" in out and "rlhf-peft export" in out
    assert "rl 1/1" in err and "error" not in err
    run = tmp_path / "runs" / "one"
    check_near(run, {row["question"]: row["answer"] for row in first(GSM8K)})
    assert (run / "code" / "rewards.py").read_text(encoding="utf-8") == NEAR
    assert read_manifest(run)["code"].keys() == {"rewards.py"}
    assert yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["seed"] == 3
