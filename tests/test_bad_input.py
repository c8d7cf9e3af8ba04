"""Bad input, through the command line: exit code 2, one paragraph that helps, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

import rlhf_peft
from rlhf_peft import cli
from rlhf_peft.runs import read_manifest

from .small_model import one_layer

TINY = Path(rlhf_peft.__file__).parent / "assets" / "tiny"
ROWS = [{"prompt": f"Who is the fox {i}?", "completion": " The fox is my friend."} for i in range(8)]
SFT = {"stage": "sft", "dataset": {"path": "rows.jsonl"}, "batch_size": 4, "max_steps": 1}
RL = {
    "stage": "rl",
    "dataset": {"path": "rows.jsonl"},
    "algorithm": {"name": "ppo"},
    "sampler": {"name": "cached", "max_new_tokens": 8},
    "rewards": [{"name": "tiny-gold"}],
    "prompts_per_step": 4,
    "max_steps": 1,
}

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The command line sends the package's log to stderr; afterwards it is as it was."""
    log = logging.getLogger("rlhf_peft")
    before = log.level, log.propagate, [*log.handlers]
    yield
    log.level, log.propagate, log.handlers = before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows and a recipe for one update on the shipped model."""
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", ROWS)
    recipe(SFT)
    return tmp_path


@pytest.fixture
def tiny(here: Path) -> Path:
    """A copy of the shipped model, to be spoilt."""
    shutil.copytree(TINY, here / "model")
    return here / "model"


@pytest.fixture
def bad(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the recipe, expects exit code 2 and one paragraph on stderr, and that nothing was left; gives it."""

    def run(*arguments: str) -> str:
        before = snapshot(here)
        capsys.readouterr()
        assert cli.execute(["run", "r.yaml", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ") and err.count("error: ") == 1
        assert "Traceback" not in err and "\n\n" not in err and err.endswith("\n")
        assert snapshot(here) == before
        return err

    return run


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(*stages: dict[str, Any], **model: Any) -> None:
    said = {
        "version": 1,
        "name": "one",
        "device": "cpu",
        "model": {"path": one_layer(), "quantization": "none", "max_length": 64, **model},
        "lora": {"r": 2, "alpha": 4},
        "stages": list(stages),
    }
    Path("r.yaml").write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder, with the hash of what it holds."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes() if path.is_file() else b""
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def works(*arguments: str) -> None:
    """The same command after the fix."""
    assert cli.execute(["run", "r.yaml", "-q", *arguments]) == 0
    name = next((word[5:] for word in arguments if word.startswith("name=")), "one")
    assert read_manifest(Path("runs", name))["status"] == "done"


# --- the dataset ---


def test_a_missing_dataset(here: Path, bad: Run) -> None:
    said = bad("stages.sft.dataset.path=row.jsonl")
    assert said == f"error: {here}/row.jsonl: no such file or folder (looked at {here}/row.jsonl). " + (
        f"Did you mean {here}/rows.jsonl?\n"
    )
    said = bad("stages.sft.dataset.path=data/other.jsonl")
    assert f"the folder {here}/data does not exist either" in said
    assert "stages.sft.dataset.path=..." in said
    said = bad("stages.sft.dataset.path=nobody/nothing")
    assert "as a hub id: the Hugging Face hub cannot be reached" in said
    assert "path=./data/nothing.jsonl" in said
    works()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "b.jsonl",
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n',
            ["b.jsonl, row 2: malformed JSON at column 17", "stages.sft.dataset.on_bad_row=skip"],
        ),
        (
            "b.json",
            '[{"prompt": "a"}, {"pr',
            ["b.json: malformed JSON at line 1, column 20", "Expected an array of objects"],
        ),
        (
            "b.csv",
            "prompt,completion\na,b\na,b,c\n",
            ["b.csv, row 2: 3 fields (line 3), but the header has 2", "on_bad_row=skip"],
        ),
        (
            "b.parquet",
            "PAR2",
            ["b.parquet: not a parquet file that can be read", "or give jsonl, json or csv"],
        ),
        ("b.jsonl", '["a"]\n', ["b.jsonl, row 1", "on_bad_row=skip"]),
        ("b.xlsx", "x", ["b.xlsx: a file ending in .xlsx is not known", ".jsonl", ".parquet"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_malformed_dataset(bad: Run, name: str, content: str, expected: list[str]) -> None:
    Path(name).write_text(content, encoding="utf-8")
    said = bad(f"stages.sft.dataset.path={name}")
    for words in expected:
        assert words in said


@pytest.mark.parametrize(
    ("stage", "needs", "mapping"),
    [
        (
            SFT,
            "An sft stage needs prompt+completion, or messages, or text",
            "{prompt: Question, completion: YOUR_COLUMN}",
        ),
        (
            {"stage": "preference"},
            "A preference stage needs prompt+chosen+rejected, or chosen+rejected",
            "{prompt: Question, chosen: Good, rejected: Bad}",
        ),
        (
            {"stage": "preference", "method": "kto"},
            "with method kto needs prompt+completion+label, or prompt+chosen+rejected, or chosen+rejected",
            "{prompt: Question, chosen: Good, rejected: Bad}",
        ),
        (
            {"stage": "reward_model"},
            "A reward_model stage needs prompt+chosen+rejected, or chosen+rejected",
            "{prompt: Question, chosen: Good, rejected: Bad}",
        ),
        (RL, "An rl stage needs prompt, or chosen+rejected", "{prompt: Question}"),
    ],
)
@pytest.mark.usefixtures("here")
def test_wrong_columns(bad: Run, stage: dict[str, Any], needs: str, mapping: str) -> None:
    Path("c.csv").write_text("Question;Good;Bad\na;b;c\n", encoding="utf-8")
    recipe({"max_steps": 1, **stage, "dataset": {"path": "c.csv"}})
    said = bad()
    assert 'c.csv: found columns Question, Good, Bad (separator ";"). ' in said
    assert needs in said
    assert f"stages.{stage['stage']}.dataset.columns='{mapping}'" in said


@pytest.mark.usefixtures("here")
def test_a_mapping_that_names_no_column_and_the_one_that_was_printed(bad: Run) -> None:
    write("c.jsonl", [{"Question": f"{i}?", "Good": " yes", "Bad": " no"} for i in range(4)])
    recipe({"stage": "preference", "dataset": {"path": "c.jsonl"}, "batch_size": 4, "max_steps": 1})
    said = bad("stages.preference.dataset.columns={prompt: Questoin}")
    assert "maps prompt to Questoin, which is not among the columns found: Question, Good, Bad" in said
    assert "Did you mean {prompt: Question}?" in said
    printed = bad().split("Map them:")[1].strip()
    works(printed.replace("'", ""))


@pytest.mark.usefixtures("here")
def test_an_empty_dataset_and_an_empty_or_unknown_split(bad: Run) -> None:
    write("e.jsonl", [])
    said = bad("stages.sft.dataset.path=e.jsonl")
    assert (
        "e.jsonl: split 'train' is empty. Splits: train (0 rows)" in said
        and "stages.sft.dataset.path=..." in said
    )
    said = bad("stages.sft.dataset.split=train[:0]")
    assert "rows.jsonl: split 'train[:0]' is empty. Splits: train (8 rows)" in said
    assert "stages.sft.dataset.split=..." in said
    said = bad("stages.sft.dataset.split=test")
    assert "rows.jsonl: split 'test': there is no such split. Splits: train (8 rows)" in said
    assert "eval_fraction=0.99 of 8 rows leaves none" in bad("stages.sft.dataset.eval_fraction=0.99")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (RL, "the prompt has 82 tokens, 90 with max_new_tokens=8"),
        (SFT, "the row has 84 tokens"),
        ({"stage": "preference"}, "the chosen answer with its prompt has 84 tokens"),
        ({"stage": "reward_model"}, "the chosen answer with its prompt has 84 tokens"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_prompt_longer_than_the_context(bad: Run, stage: dict[str, Any], expected: str) -> None:
    long = {"prompt": "fox " * 80, "completion": " b", "chosen": " b", "rejected": " c d e"}
    write("l.jsonl", [{**long, "prompt": f"fox {i}"} for i in range(4)] + [long])
    rows = {} if stage is RL else {"batch_size": 4}
    recipe({"max_steps": 1, **rows, **stage, "dataset": {"path": "l.jsonl"}})
    said = bad()
    assert f"l.jsonl, row 5: {expected}; the limit is model.max_length=64. Shorten it, set a larger" in said
    override = f"stages.{stage['stage']}.dataset.on_bad_row=skip"
    assert said.endswith(f"or leave such rows out: {override}\n")
    if stage is SFT:
        works(override)


@pytest.mark.usefixtures("here")
def test_no_prompt_leaves_room_for_the_answer(bad: Run) -> None:
    recipe({**RL, "sampler": {"name": "cached", "max_new_tokens": 80}})
    assert "stages.rl.sampler.max_new_tokens: 80 leaves no room for a prompt" in bad()
    recipe({**RL, "sampler": {"name": "cached", "max_new_tokens": 60}})
    assert "row 1: the prompt has 8 tokens, 68 with max_new_tokens=60" in (said := bad())
    assert "(7 more bad rows)" in said
    assert "No row is left to work with" in bad("stages.rl.dataset.on_bad_row=skip")


# --- the tokenizer ---


def test_a_tokenizer_without_pad_works(tiny: Path) -> None:
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    config.pop("pad_token", None)
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    assert AutoTokenizer.from_pretrained(tiny).pad_token is None
    recipe(SFT, RL, path="./model")
    works()


@pytest.mark.parametrize("kind", ["sft", "preference", "reward_model", "rl"])
def test_a_tokenizer_without_the_chat_template_that_the_rows_need(tiny: Path, bad: Run, kind: str) -> None:
    (tiny / "chat_template.jinja").unlink()
    asked, said = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am here."}
    row = {"prompt": [asked], "completion": [said]}
    if kind in ("preference", "reward_model"):
        row = {"prompt": [asked], "chosen": [said], "rejected": [{**said, "content": "No."}]}
    write("spoken.jsonl", [row] * 4)
    stage = RL if kind == "rl" else {"stage": kind, "max_steps": 1, "batch_size": 4}
    recipe({**stage, "dataset": {"path": "spoken.jsonl"}}, path="./model")
    message = bad()
    assert message.startswith(
        f"error: model.path: {tiny}: the rows are conversations, but the tokenizer has no chat template. "
    )
    assert "save a chat_template.jinja beside the tokenizer, or give rows of plain text" in message
    if kind == "sft":
        write("spoken.jsonl", ROWS)  # plain rows need none
        works()


def test_a_token_that_the_embedding_does_not_have(tiny: Path, bad: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(tiny)
    recipe(SFT, path="./model")
    works()  # as long as no row holds it
    write("new.jsonl", [{"prompt": f"fox {i}", "completion": " a bear"} for i in range(7)])
    with Path("new.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "fox", "completion": " a <new> bear"}\n')
    recipe({**SFT, "dataset": {"path": "new.jsonl"}}, path="./model")
    said = bad("name=other")
    assert f"new.jsonl, row 8: it holds the token '<new>' (id {size:,})" in said
    assert f"which the model's embedding of {size:,} rows does not have" in said


# --- the model and the device ---


@pytest.mark.parametrize(
    ("path", "found", "expected"),
    [
        (
            "./nowhere",
            "nowhere cannot be loaded (there is no such folder)",
            "a folder with config.json and weights",
        ),
        ("./empty", "empty cannot be loaded (", "a folder with config.json and weights"),
        ("nobody/nothing", "nobody/nothing cannot be loaded (", "a hub id that can be reached, or a folder"),
        ("builtin:small", "builtin:small is not shipped with this package", "Shipped: builtin:tiny"),
    ],
)
@pytest.mark.usefixtures("here")
def test_an_unknown_model_path(bad: Run, path: str, found: str, expected: str) -> None:
    Path("empty").mkdir()
    recipe(SFT, path=path)
    said = bad()
    assert said.startswith("error: model.path: ")
    assert found in said and expected in said


def test_weights_that_cannot_be_read(tiny: Path, bad: Run) -> None:
    (tiny / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    recipe(SFT, path="./model")
    assert bad().startswith("error: model.path: ")
    (tiny / "model.safetensors").write_bytes(b"no safetensors")
    assert bad().startswith(f"error: model.path: {tiny} cannot be loaded (")


@pytest.mark.usefixtures("here")
def test_nf4_on_a_device_that_cannot(bad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(SFT, quantization="nf4")
    assert bad("device=meta").startswith(
        "error: device: meta cannot be used here (it holds no data). Use `device: auto`"
    )
    assert bad("device=gpu").startswith("error: device: gpu cannot be used here (")
    if not torch.backends.mps.is_available():
        assert bad("device=mps").startswith("error: device: mps cannot be used here (")
    monkeypatch.setattr("rlhf_peft.builtin.quantizers.four_bits.Nf4.devices", ("cuda",))
    said = bad()
    assert said == (
        "error: model.quantization: nf4 double has no kernels for cpu, only for cuda. "
        "Use model.quantization=none.\n"
    )
    works("model.quantization=none")


# --- the run folder ---


@pytest.mark.usefixtures("here")
def test_a_finished_run_is_never_touched_unless_a_new_one_trains(bad: Run) -> None:
    works()
    Path("runs/one/notes.txt").write_text("mine")
    first = snapshot(Path("runs"))
    assert "runs/one: holds a finished run. Replace it with --overwrite, or set another name=..." in bad()
    for wrong in (
        "stages.sft.dataset.path=row.jsonl",
        "stages.sft.dataset.split=test",
        "stages.sft.optimizer=adamw_8bit",
        "stages.sft.init={policy: ./nowhere}",
        "model.max_length=4",
        "model.path=./nowhere",
        "device=meta",
    ):
        bad("--overwrite", wrong)
    assert snapshot(Path("runs")) == first
    works("--overwrite")
    last = snapshot(Path("runs"))
    assert last["one/manifest.json"] != first["one/manifest.json"]
    assert last["one/notes.txt"] == first["one/notes.txt"]


@pytest.mark.usefixtures("here")
def test_files_in_the_way_are_never_touched(bad: Run) -> None:
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/thesis.txt").write_text("mine")
    assert "holds files that are not a run's, so nothing was touched" in bad("--overwrite")
    Path("taken").write_text("a file")
    assert "cannot be made: " in (said := bad("output_dir=taken")) and "output_dir=..." in said


@pytest.mark.usefixtures("here")
def test_the_data_of_a_later_stage_is_looked_at_before_the_first_one_trains(bad: Run) -> None:
    recipe(SFT, {**RL, "dataset": {"path": "prompts.jsonl"}})
    assert "prompts.jsonl: no such file or folder" in bad()
    write("prompts.jsonl", [{"ask": "Who is the fox?"}])
    assert "stages.rl.dataset.columns='" in bad()
    write("prompts.jsonl", ROWS)
    works()


@pytest.mark.usefixtures("here")
def test_what_a_stage_has_trained_is_kept_when_a_later_one_cannot_begin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe(SFT, {**RL, "rewards": [{"name": "learned"}]})
    assert cli.execute(["run", "r.yaml", "-q"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "needs a reward head and there is none. Put a reward_model stage before" in err
    manifest = read_manifest("runs/one")
    assert manifest["status"] == "failed" and manifest["stages_done"] == ["sft"]
    assert Path("runs/one/adapters/policy/adapter_model.safetensors").is_file()
    recipe({**RL, "init": {"policy": "runs/one"}})
    works("name=two")
