"""An adapter or head knows the base that it was trained on, and is refused on another unless accepted by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_peft.engine import POLICY
from rlhf_peft.engine import fingerprint as fingerprints
from rlhf_peft.engine.fingerprint import FILE, sampled_hash
from rlhf_peft.errors import ModelError

from .support import edit_json, load, stir


@pytest.fixture
def trained(folder_of, tmp_path):
    """A policy that was trained on the NF4 base, saved."""
    base = load(folder_of("llama"), "nf4")
    stir(base, POLICY)
    base.roles.save(POLICY, tmp_path / "saved")
    return tmp_path / "saved"


def copied(folder_of, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(folder_of("llama"), folder)
    return folder


def test_the_same_weights_elsewhere_are_the_same_base(folder_of, tmp_path, trained):
    folder = copied(folder_of, tmp_path)
    edit_json(folder / "config.json", transformers_version="5.0.0")
    load(folder, "nf4").roles.load("reference", str(trained))


def other_weights(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def other_positions(folder):
    edit_json(folder / "config.json", rms_norm_eps=1e-4)


def other_template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")


@pytest.mark.parametrize(
    ("change", "quantization", "name", "told"),
    [
        (other_weights, "nf4", "base", r"another base model \(\w{4}, here \w{4}\)"),
        (other_positions, "nf4", "base", r"another base model \(\w{4}, here \w{4}\)"),
        (other_template, "nf4", "chat_template", r"another chat template \(\w{4}, here \w{4}\)"),
        (lambda folder: None, "none", "quantization", r"another quantization \(nf4 double, here none\)"),
    ],
    ids=["weights", "configuration", "template", "quantization"],
)
def test_another_base_is_refused_unless_it_is_accepted_by_name(
    folder_of, tmp_path, trained, change, quantization, name, told
):
    folder = copied(folder_of, tmp_path)
    change(folder)
    base = load(folder, quantization)
    with pytest.raises(ModelError, match=rf"saved: was trained on {told}.*--allow-changed {name}"):
        base.roles.load("reference", str(trained))
    assert "reference" not in base.roles.names
    load(folder, quantization, accepted=(name,)).roles.load("reference", str(trained))


def test_a_head_knows_its_base_too(folder_of, tmp_path):
    base = load(folder_of("llama"), "nf4")
    base.roles.add("reward-0", head=True)
    base.roles.save("reward-0", tmp_path / "reward-0")
    with pytest.raises(ModelError, match="another quantization"):
        load(folder_of("llama"), "none").roles.load("reward-0", str(tmp_path / "reward-0"), head=True)


def test_what_others_made_carries_none_and_is_taken(folder_of, trained):
    (trained / FILE).unlink()
    load(folder_of("llama"), "none").roles.load("reference", str(trained))


@pytest.mark.parametrize("text", ["", "[]", '{"base": 1}', "\x00", "[" * 100_000])
def test_a_damaged_fingerprint_is_named(folder_of, trained, text):
    (trained / FILE).write_text(text)
    with pytest.raises(ModelError, match=r"base\.json"):
        load(folder_of("llama"), "nf4").roles.load("reference", str(trained))


def test_of_large_files_blocks_all_over_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "BLOCK", 16)
    monkeypatch.setattr(fingerprints, "BLOCKS", 64)
    file, data = tmp_path / "weights", bytearray(torch.randint(0, 256, (16 * 64 * 3,)).tolist())
    file.write_bytes(data)
    whole = sampled_hash(file)
    assert sampled_hash(file) == whole
    for place in (0, len(data) - 1):
        data[place] ^= 1
        file.write_bytes(data)
        assert sampled_hash(file) != whole
        data[place] ^= 1
    # A change of many places, as a merged adapter makes it, is always seen.
    file.write_bytes(bytes(byte ^ 1 for byte in data[: len(data) // 2]) + data[len(data) // 2 :])
    assert sampled_hash(file) != whole


def test_it_is_written_as_json(trained):
    found = json.loads((trained / FILE).read_text())
    assert list(found) == ["base", "quantization", "chat_template"] and found["quantization"] == "nf4 double"
