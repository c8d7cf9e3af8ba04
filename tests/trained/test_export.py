"""What is handed over loads in plain transformers and PEFT, and says the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from rlhf_peft.builtin.rewards.classifier import Classifier, ClassifierOptions
from rlhf_peft.cli import execute
from rlhf_peft.engine import POLICY
from rlhf_peft.errors import UsageError
from rlhf_peft.recipe import load
from rlhf_peft.trained import open_run
from rlhf_peft.trained.export import export
from rlhf_peft.trained.files import pad_token, save_tokenizer

from ..children import killed_at, with_full_disk

IDS = torch.arange(4, 24)[None]


@pytest.fixture(scope="module")
def stack(trained):
    """The run as it was trained: adapters on the 4-bit base."""
    return open_run(trained).base


def run_code(folder):
    """What the model card's Python makes."""
    card = (folder / "README.md").read_text()
    names = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    return names["model"].eval()


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def expected(base, role=POLICY):
    with base.role(role, train=False):
        return logits(base.lm)


def rewards(base, role, rows):
    with torch.no_grad(), base.role(role, train=False):
        return base.forwards.rewards(
            base.forwards.hidden(rows), torch.full((len(rows),), rows.shape[1]), role
        )


@pytest.mark.parametrize("flag", [False, True], ids=["other CPU", "AVX512-BF16"])
def test_an_adapter_for_plain_peft(trained, stack, tmp_path, monkeypatch, flag):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: flag)
    done = export(trained, "peft", tmp_path / "out")
    assert torch.allclose(logits(run_code(done.folder)), expected(stack), atol=1e-4)
    assert torch.allclose(
        logits(AutoPeftModelForCausalLM.from_pretrained(done.folder)), expected(stack), atol=4.0
    )
    card = (done.folder / "README.md").read_text()
    assert "base_model:" not in card  # a path of this machine means nothing on the hub
    assert "model.generate(**inputs" in card and "in the stages sft, reward_model, rl." in card
    assert "AVX512-BF16" in card and "support_avx512bf16_for_cpu = False" in card
    assert "## Intended use" in card and "| rl | eval/reward |" in card and "name: trained" in card
    assert (done.folder / "chat_template.jinja").is_file()


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-5), ("bfloat16", 2**-6)])
def test_merged_weights_say_what_was_trained(trained, stack, tmp_path, dtype, share):
    """Rounding to bfloat16 is by 2^-9 of a value at most; through the layers below 2^-6 of the largest logit."""
    done = export(trained, "merged", tmp_path / "out", dtype=dtype)
    most = share * done.scale
    model = run_code(done.folder)
    assert model.dtype == getattr(torch, dtype)
    difference = float((logits(model) - expected(stack)).abs().max())
    assert difference < most and done.difference < most
    with stack.role("base", train=False):
        assert float((logits(stack.lm) - expected(stack)).abs().max()) > 0.3


@pytest.mark.parametrize("role", ["policy", "reward-0"])
def test_a_base_that_is_stored_in_4_bits_is_written_without_them(trained_on_stored_4bit, tmp_path, role):
    done = export(trained_on_stored_4bit, "merged", tmp_path / "out", role=role, dtype="float32")
    base = open_run(trained_on_stored_4bit).base
    model = run_code(done.folder)
    theirs = logits(model)
    ours = expected(base) if role == POLICY else rewards(base, role, IDS)[:, None] - done.offset
    assert torch.allclose(theirs, ours, atol=1e-4) and done.difference < 1e-4
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "quantization_config" not in json.loads((done.folder / "config.json").read_text())
    with base.role("base", train=False):
        assert role != POLICY or not torch.allclose(logits(base.lm), ours, atol=1e-2)


@pytest.mark.parametrize("flag", [False, True], ids=["other CPU", "AVX512-BF16"])
@pytest.mark.parametrize("target", ["peft", "merged"])
def test_a_reward_as_a_classifier_scores_the_same(trained, stack, tmp_path, monkeypatch, target, flag):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: flag)
    done = export(trained, target, tmp_path / "out", role="reward-1", dtype="float32")
    model = run_code(done.folder)
    rows = torch.randint(4, 200, (5, 9), generator=torch.Generator().manual_seed(0))
    theirs = logits(model, rows)[:, 0] + done.offset
    assert model.config.num_labels == 1 and theirs.std() > 0.01
    assert torch.allclose(theirs, rewards(stack, "reward-1", rows), atol=1e-4)


def test_an_exported_classifier_is_a_reward_that_scores_as_its_head(trained, stack, tmp_path):
    done = export(trained, "merged", tmp_path / "out", role="reward-0", dtype="float32")
    reward = Classifier(ClassifierOptions(model=str(done.folder), device="cpu"))
    rows = torch.arange(4, 20)[None]
    assert reward._forward([rows[0].tolist()]).item() == pytest.approx(
        rewards(stack, "reward-0", rows).item(), abs=1e-4
    )


def test_a_classifier_reads_the_token_that_ends_a_text(trained, stack, tmp_path):
    done = export(trained, "merged", tmp_path / "out", role="reward-0", dtype="float32")
    tokenizer, model = AutoTokenizer.from_pretrained(done.folder), run_code(done.folder)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    row = torch.tensor([[*range(4, 12), tokenizer.eos_token_id]])
    assert torch.allclose(logits(model, row)[:, 0] + done.offset, rewards(stack, "reward-0", row), atol=1e-4)
    batch = tokenizer.pad({"input_ids": [row[0].tolist(), row[0, 3:].tolist()]}, return_tensors="pt")
    with torch.no_grad():
        both = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
            + done.offset
        )
    alone = [rewards(stack, "reward-0", part)[0] for part in (row, row[:, 3:])]
    assert torch.allclose(both, torch.stack(alone), atol=1e-4)


@pytest.mark.skipif(not has_avx512bf16(), reason="needs a CPU with AVX512-BF16")
def test_what_the_card_says_of_bfloat16_is_so(trained, stack, tmp_path):
    done = export(trained, "peft", tmp_path / "out")
    code = (done.folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(code.replace("support_avx512bf16_for_cpu = False", "support_avx512bf16_for_cpu = True"), names)
    assert 1e-3 < float((logits(names["model"].eval()) - expected(stack)).abs().max()) < 0.3


def test_a_pad_token_is_chosen_that_ends_nothing():
    class Tokens:
        pad_token = eos_token = "<end>"
        unk_token = bos_token = None
        all_special_tokens = ("<end>", "<start>")

    assert pad_token(Tokens()) == "<start>"


def test_arguments_of_the_template_are_its_defaults(trained, tmp_path):
    change = "model.chat_template_kwargs={enable_thinking: false, tools_here: [a, null, 1, 0]}"
    (tmp_path / "t").mkdir()
    plain = save_tokenizer(load(trained / "recipe.yaml", ()), tmp_path / "t", False).chat_template
    tokenizer = save_tokenizer(load(trained / "recipe.yaml", [change]), tmp_path / "t", False)
    head = tokenizer.chat_template.removesuffix(plain)
    assert head != tokenizer.chat_template
    tokenizer.chat_template = head + "{{ enable_thinking }} {{ tools_here }} {{ messages[0].content }}"
    talk = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "False ['a', None, 1, 0] hi"
    assert (
        tokenizer.apply_chat_template(talk, tokenize=False, enable_thinking=True)
        == "True ['a', None, 1, 0] hi"
    )


def test_whole_weights_say_where_an_answer_ends(trained, stack, tmp_path):
    done = export(trained, "merged", tmp_path / "out")
    generation = json.loads((done.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(stack.eos_ids)


@pytest.mark.parametrize("role", ["policy", "reward-0"])
def test_whole_weights_are_written_for_transformers_4_too(trained, tmp_path, role):
    done = export(trained, "merged", tmp_path / "out", role=role)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    tokenizer = json.loads((done.folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(done.folder)("2 + 2")["input_ids"]


def test_a_card_tells_of_finished_stages_only(trained, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(trained, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"status": "stopped", "stages_done": ["sft", "reward_model"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    text = (export(folder, "peft", tmp_path / "out").folder / "README.md").read_text()
    assert "in the stages sft, reward_model." in text and "| rl |" not in text
    assert "rl is not finished" in text


def test_the_lines_that_serve_it(trained, tmp_path, capsys):
    assert execute(["export", str(trained), "--to", "vllm", "-o", str(tmp_path / "v")]) == 0
    out = capsys.readouterr().out
    lines = out.partition("next:\n")[2].splitlines()
    assert lines[0].startswith("  pip install vllm-bnb-plugin  # vLLM 0.28") and lines[1].startswith(
        "  vllm serve "
    )
    assert "tiny --quantization bitsandbytes --enable-lora --max-lora-rank 8 --lora-modules trained=" in out
    assert execute(["export", str(trained), "--to", "ollama", "-o", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "ollama create trained -f " in out and "largest logit difference" in out
    text = (tmp_path / "o" / "Modelfile").read_text()
    assert text.startswith("FROM .\n") and "PARAMETER stop" in text and "PARAMETER num_ctx 512\n" in text


def test_nothing_is_overwritten_and_nonsense_is_refused(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        export(trained, "peft", tmp_path / "out")
    with pytest.raises(UsageError, match="serves policies"):
        export(trained, "vllm", tmp_path / "new", role="reward-0")
    assert execute(["export", str(trained), "--role", "value", "-o", str(tmp_path / "n")]) == 2
    assert "has no adapter of value. It has policy, reward-0, reward-1" in capsys.readouterr().err
    assert json.loads((trained / "manifest.json").read_text())["status"] == "done"


def test_an_earlier_export_is_replaced_and_nothing_else(trained, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(trained), "-o", str(out)]
    assert execute([*command, "--to", "merged", "--dtype", "float16"]) == 0
    record = json.loads((out / "export.json").read_text())
    assert record["target"] == "merged" and record["dtype"] == "float16" and record["largest_difference"] > 0
    assert sorted(record["files"]) == sorted(
        p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()
    )
    assert execute(command) == 2
    assert "replace an earlier export with --overwrite" in " ".join(capsys.readouterr().err.split())
    (out / "mine.gguf").write_text("x")
    assert execute([*command, "--overwrite"]) == 2
    assert "mine.gguf is not of it" in " ".join(capsys.readouterr().err.split())
    (out / "mine.gguf").unlink()
    assert execute([*command, "--overwrite"]) == 0
    assert (out / "adapter_config.json").is_file() and not (out / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (out / "export.json").unlink()
    with pytest.raises(UsageError, match=r"there is no export\.json here"):
        export(trained, "peft", out, overwrite=True)
    assert (out / "adapter_config.json").is_file()


def test_what_is_pushed_is_the_folder(trained, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, sorted(file.name for file in Path(folder_path).iterdir())))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert execute(["export", str(trained), "-o", str(tmp_path / "o"), "--push", "me/policy"]) == 0
    assert "pushed: https://hub/me/policy" in capsys.readouterr().out
    assert calls[0] == ("me/policy", {"exist_ok": True, "private": True})
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json"} <= set(calls[1][1])


def test_a_push_without_a_network_is_told_and_the_folder_stays(trained, tmp_path, capsys):
    assert execute(["export", str(trained), "-o", str(tmp_path / "o"), "--push", "me/policy"]) == 2
    assert "error: --push me/policy: " in (err := capsys.readouterr().err) and "The folder is complete" in err
    assert (tmp_path / "o" / "README.md").is_file()


@pytest.mark.parametrize("target", ["peft", "merged"])
def test_an_export_that_fails_leaves_nothing_and_works_when_it_is_tried_again(
    trained, tmp_path, capfd, target
):
    folder = tmp_path / "out"
    if hasattr(os, "fork"):
        assert (
            with_full_disk(lambda: execute(["export", str(trained), "--to", target, "-o", str(folder)])) == 1
        )
        assert os.listdir(tmp_path) == []
        assert f"error: {folder}: File too large. Make room" in capfd.readouterr().err
    export(trained, target, folder)
    assert (folder / "README.md").is_file() and list(folder.glob("*.safetensors"))
    assert os.listdir(tmp_path) == ["out"]
    assert ".tmp" not in (folder / "README.md").read_text()


def test_an_export_that_is_killed_is_no_obstacle(trained, tmp_path):
    folder = tmp_path / "out"
    for touch in (2, 4, 7):
        assert killed_at(tmp_path, touch, lambda: export(trained, "peft", folder))
        assert not folder.exists()
    export(trained, "peft", folder)
    assert os.listdir(tmp_path) == ["out"] and (folder / "adapter_model.safetensors").is_file()
