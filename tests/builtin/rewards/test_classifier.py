import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rlhf_peft.builtin.rewards.classifier import Classifier, ClassifierOptions
from rlhf_peft.plugin import ModelError, RewardError

from .doubles import batch, chats, score

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module", params=[1, 3])
def folder(request, tmp_path_factory):
    """A random sequence classifier with one or three outputs."""
    path = tmp_path_factory.mktemp(f"classifier{request.param}")
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "user", "assistant", "a", "b", "c", "q"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=request.param,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path, request.param


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def made(folder, **options):
    path, count = folder
    label = {} if count == 1 else {"label": 2}
    return Classifier(ClassifierOptions(model=str(path), device="cpu", **{**label, **options}))


def test_chats_go_through_the_tokenizers_own_template(folder):
    reward = made(folder, batch_size=2)
    prompts = [[{"role": "user", "content": "q"}]] * 3
    out = score(reward, batch(completions=chats("a", "b c a", "c"), prompts=prompts)).row
    ids = torch.tensor([[2, 7, 3, 5, 6, 4]])
    expected = reward.model(input_ids=ids).logits[0, 0 if folder[1] == 1 else 2]
    assert out[1] == pytest.approx(float(expected), abs=1e-5)


def test_plain_text_and_rows_do_not_depend_on_their_batch(folder):
    texts = [" a", " b c a b c", " c c"]
    one, many = (
        score(made(folder, batch_size=size), batch(completions=texts, prompts=["q"] * 3)).row
        for size in (1, 3)
    )
    torch.testing.assert_close(one, many, atol=1e-6, rtol=0)


def test_long_rows_are_cut_at_the_start_and_counted(folder):
    reward = made(folder)
    out = score(reward, batch(completions=["a " * 40, "a"], prompts=["q "] * 2))
    assert out.metrics == {"truncated": 0.5} and bool(out.row.isfinite().all())


def test_probabilities_lie_between_0_and_1(folder):
    row = score(made(folder, probability=True), batch(completions=["a", "b"])).row
    assert bool(((row > 0) & (row < 1)).all())


def test_a_label_must_be_one_of_them(folder):
    if folder[1] == 3:
        with pytest.raises(ModelError, match=r"has 3 outputs .*label=0 to label=2"):
            made(folder, label=None)
    with pytest.raises(ModelError, match="Choose one"):
        made(folder, label=3)


def test_no_such_model_and_no_template(folder, tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        Classifier(ClassifierOptions(model=str(tmp_path / "none")))
    reward = made(folder)
    reward.tokenizer.chat_template = None
    with pytest.raises(RewardError, match="no chat template"):
        score(reward, batch(completions=chats("a"), prompts=[[{"role": "user", "content": "q"}]]))


def test_a_model_without_a_head_is_refused(folder, tmp_path):
    path = shutil.copytree(folder[0], tmp_path / "nohead")
    weights = {
        k: v.clone() for k, v in load_file(path / "model.safetensors").items() if "classifier" not in k
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lack 2 tensors of BertForSequenceClassification, the first classifier\.bias"
    ):
        made((path, folder[1]))


@pytest.fixture
def never_unpickled(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("a file was unpickled")

    monkeypatch.setattr(torch, "load", load)


@pytest.mark.parametrize("index", [False, True])
def test_pickled_weights_are_refused_unread(folder, tmp_path, never_unpickled, index):
    path = shutil.copytree(folder[0], tmp_path / "pickled")
    weights = load_file(path / "model.safetensors")
    torch.save(weights, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    if index:
        names = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
        (path / "model.safetensors.index.json").write_text(json.dumps(names))
    with pytest.raises(ModelError, match="safetensors"):
        made((path, folder[1]))


@pytest.mark.parametrize("tokenizer", [False, True])
def test_code_that_a_model_brings_is_not_run_and_the_remedy_is_named(folder, tmp_path, tokenizer):
    path = shutil.copytree(folder[0], tmp_path / "own")
    names = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    edit_json(path / "config.json", auto_map=names, model_type="of-their-own")
    if tokenizer:
        names = {"AutoTokenizer": ["own.T", None]}
        edit_json(path / "tokenizer_config.json", auto_map=names, tokenizer_class="OfTheirOwn")
    (path / "own.py").write_text("raise AssertionError('it was run')\n")
    with pytest.raises(ModelError, match=r"brings code of its own.* --reward FILE\.py:FUNC"):
        made((path, folder[1]))
