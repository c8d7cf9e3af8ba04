"""Whatever stands in an adapter's folder, it loads or is refused with an error of ours, and the base is as it was."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhf_peft.engine import POLICY
from rlhf_peft.errors import ModelError

from .support import everything, load, stir

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "use_rslora",
    "bias",
    "init_lora_weights",
    "task_type",
    "auto_mapping",
    "runtime_config",
    "corda_config",
    "unknown",
)


@pytest.fixture(scope="module")
def saved(folder_of, tmp_path_factory):
    """A base, and the folder of a reward that was saved from it."""
    base = load(folder_of("llama"))
    base.roles.add("reward-0", head=True)
    stir(base, "reward-0")
    folder = tmp_path_factory.mktemp("saved")
    base.roles.save("reward-0", folder)
    base.roles.remove("reward-0")
    return base, folder


def loads_or_says_why(saved, tmp_path, change):
    base, folder = saved
    broken = tmp_path / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(folder, broken)
    change(broken)
    before = everything(base)
    weights = [p.detach().clone() for p in base.roles.parameters(POLICY)]
    try:
        base.roles.load("reward-0", str(broken), head=True)
    except ModelError as error:
        assert "broken" in str(error)
    base.roles.remove("reward-0")
    after = everything(base)
    assert {k: v for k, v in after.items() if k not in ("modules",)} == {
        k: v for k, v in before.items() if k not in ("modules",)
    }
    assert all(torch.equal(a, b) for a, b in zip(weights, base.roles.parameters(POLICY), strict=True))


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON_LIKE, min_size=1, max_size=3))
@example(changes={"target_modules": "("})
@example(changes={"target_modules": ""})
@example(changes={"target_modules": []})
@example(changes={"r": 0})
@example(changes={"r": 10**9})
@example(changes={"rank_pattern": {"q_proj": 10**9}})
@example(changes={"rank_pattern": {"(": 3}})
@example(changes={"alpha_pattern": {"(": 3.0}})
@example(changes={"layers_to_transform": [99]})
@example(changes={"exclude_modules": "("})
@example(changes={"task_type": "SEQ_CLS"})
@example(changes={"runtime_config": {"ephemeral_gpu_offload": True}})
def test_an_adapter_configuration(saved, tmp_path, changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    loads_or_says_why(saved, tmp_path, change)


@FUZZ
@given(data=st.binary(max_size=60) | st.builds(lambda v: json.dumps(v).encode(), JSON_LIKE))
@example(data=b"[" * 100_000)
@example(data=b"\xff\xfe")
@pytest.mark.parametrize("name", ["adapter_config.json", "base.json"])
def test_another_text_instead(saved, tmp_path, name, data):
    loads_or_says_why(saved, tmp_path, lambda folder: (folder / name).write_bytes(data))


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), cut=st.none() | st.floats(0, 1))
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
def test_damaged_tensors(saved, tmp_path, name, place, bits, cut):
    def change(folder):
        data = bytearray((folder / name).read_bytes())
        # The header is where damage matters: half of all places are in it.
        header = 8 + int.from_bytes(data[:8], "little")
        data[int(2 * place * header) if place < 0.5 else int(place * len(data))] ^= bits
        (folder / name).write_bytes(data if cut is None else data[: int(cut * len(data))])

    loads_or_says_why(saved, tmp_path, change)
