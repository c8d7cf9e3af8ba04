"""What is handed over loads in plain transformers and PEFT, and says the same."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_peft.cli import execute
from rlhf_peft.engine import POLICY
from rlhf_peft.errors import UsageError
from rlhf_peft.trained import open_run
from rlhf_peft.trained.export import export, modelfile

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # PEFT

IDS = torch.arange(4, 24)[None]


@pytest.fixture(scope="module")
def dense(trained):
    """The run on the unquantized base, which merged weights come from."""
    return open_run(trained, quantization="none", allow_changed=("quantization",))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def test_an_adapter_for_plain_peft(trained, dense, tmp_path):
    done = export(trained, "peft", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(dense.base.source.location, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, done.folder).eval()
    with dense.base.role(POLICY, train=False):
        assert torch.allclose(logits(theirs), logits(dense.base.lm), atol=1e-5)
    card = (done.folder / "README.md").read_text()
    assert (
        card.startswith("---\nbase_model: builtin:tiny")
        and "sft (sft), reward_model (reward_model), rl (rl)" in card
    )
    assert "## Intended use" in card and "| rl | eval/reward |" in card
    AutoTokenizer.from_pretrained(done.folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights(trained, dense, tmp_path, dtype):
    done = export(trained, "merged", tmp_path / "out", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto").eval()
    assert model.dtype == getattr(torch, dtype)
    with dense.base.role(POLICY, train=False):
        expected = logits(dense.base.lm)
    assert torch.allclose(logits(model), expected, atol=1e-4 if dtype == "float32" else 0.3)
    # It was trained on 4 bits, so there is a difference, and it is measured.
    assert 0 < done.difference < done.scale


def test_a_reward_as_a_classifier(trained, dense, tmp_path):
    done = export(trained, "merged", tmp_path / "out", role="reward-1", dtype="float32")
    model = AutoModelForSequenceClassification.from_pretrained(done.folder).eval()
    assert model.config.num_labels == 1 and model.config.score_offset == pytest.approx(done.offset)
    rows = torch.randint(4, 200, (5, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(input_ids=rows).logits[:, 0] + done.offset
        with dense.base.role("reward-1", train=False):
            ours = dense.base.rewards(dense.base.hidden(rows), torch.full((5,), 9), "reward-1")
    assert torch.allclose(theirs, ours, atol=1e-4)


def test_the_lines_that_serve_it(trained, tmp_path, capsys):
    assert execute(["export", str(trained), "--to", "vllm", "-o", str(tmp_path / "v")]) == 0
    out = capsys.readouterr().out
    assert "vllm serve builtin:tiny --enable-lora --max-lora-rank 8 --lora-modules trained=" in out
    assert execute(["export", str(trained), "--to", "ollama", "-o", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "ollama create trained -f " in out and "largest logit difference" in out
    text = (tmp_path / "o" / "Modelfile").read_text()
    assert text.startswith("FROM .\n") and "PARAMETER stop" in text and "PARAMETER num_ctx 64" in text


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_template_becomes_ollamas(dense):
    from copy import deepcopy

    tokenizer = deepcopy(dense.base.tokenizer)
    tokenizer.chat_template = CHATML
    text = modelfile(tokenizer, dense.base)
    assert (
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n'
        '{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"""' in text
    )


def test_nothing_is_overwritten_and_nonsense_is_refused(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        export(trained, "peft", tmp_path / "out")
    with pytest.raises(UsageError, match="serves policies"):
        export(trained, "vllm", tmp_path / "new", role="reward-0")
    assert execute(["export", str(trained), "--role", "value", "-o", str(tmp_path / "n")]) == 2
    assert "has no value. It has policy, reward-0, reward-1" in capsys.readouterr().err
    assert json.loads((trained / "manifest.json").read_text())["status"] == "done"
