"""The lean step over quantized layers with an adapter beside them gives what transformers and PEFT give."""

import pytest
import torch

from rlhf_peft.engine import POLICY, LoraSpec
from rlhf_peft.engine.decoding import PlainStepper
from rlhf_peft.engine.fast.lean import LeanDecoder
from rlhf_peft.engine.fast.lean.row_vectors import RowVectors

from ..support import load, stir, tokens

PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in (5, 9, 5)]
MANY = [0] * 4 + [1] * 4 + [2] * 4
"""As many rows of each prompt; more rows than a CPU gives copies of their prompt."""
UNEVEN = [2, 1, 0, 0, 1, 2, 2, 1, 1, 1, 0, 1]
FEW_ROWS = [0, 0, 1, 1, 1, 2]


def left(which):
    """Rows that do not follow the first prompt."""
    return [i for i, prompt in enumerate(which) if prompt != 0]


def steps(base, role, way, which=UNEVEN, count=5):
    """Logits of some steps after the prompts; rows come and go in the middle."""
    out = []
    with base.decoding.as_role(role, merge=False) as model:
        assert LeanDecoder.supports(model.lm, dense=False)
        read = model._read([PROMPTS[i] for i in which])
        layout = () if way is PlainStepper else (RowVectors(),)
        stepper = way(model.lm, read.cache, read.mask, read.which, count, *layout)
        lengths = read.mask.sum(-1)[read.which]
        for t in range(count):
            drawn = (torch.arange(len(lengths)) * 7 + t) % 60 + 4
            out.append(stepper.step(drawn, (lengths + t).unsqueeze(-1)))
            if t in (1, 3):  # First rows of all prompts go, then all rows of the first prompt.
                keep = torch.arange(len(lengths))[1:] if t == 1 else torch.tensor(left(which[1:]))
                stepper.keep(keep)
                lengths = lengths[keep]
    return out


@pytest.mark.parametrize("name", ["llama", "llama_bias", "qwen2", "qwen3"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("which", [MANY, UNEVEN, FEW_ROWS], ids=["even", "uneven", "few"])
def test_steps_are_the_models_own(folder_of, name, quantization, which):
    base = load(folder_of(name), quantization, LoraSpec(r=4, alpha=6.0))
    base.roles.add("reward-0", head=True)
    stir(base, POLICY)
    stir(base, "reward-0", seed=3)
    first = {}
    for role in (POLICY, "reward-0", "base"):
        ours, theirs = (steps(base, role, way, which) for way in (LeanDecoder, PlainStepper))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == other.shape
            assert torch.allclose(mine, other, atol=1e-4 * float(other.abs().max()))
        first[role] = ours[0]
    assert not torch.allclose(first[POLICY], first["base"], atol=1e-2)
    assert not torch.allclose(first[POLICY], first["reward-0"], atol=1e-2)


def test_an_adapter_on_some_layers_alone(folder_of):
    base = load(folder_of("qwen3"), "nf4", LoraSpec(r=4, target_modules=("q_proj", "v_proj", "down_proj")))
    stir(base, POLICY)
    for mine, other in zip(steps(base, POLICY, LeanDecoder), steps(base, POLICY, PlainStepper), strict=True):
        assert torch.allclose(mine, other, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_models_own(folder_of, quantization):
    """Mean error of log-probabilities, in nats a token, against the same weights computed in float32."""
    bases = {
        dtype: load(folder_of("qwen3"), quantization, LoraSpec(r=4, alpha=6.0), compute_dtype=dtype)
        for dtype in ("bfloat16", "float32")
    }
    if quantization == "none":  # The weights of the one are those of the other, rounded.
        state = {key: value.float() for key, value in bases["bfloat16"].lm.state_dict().items()}
        bases["float32"].lm.load_state_dict(state)
    for base in bases.values():
        stir(base, POLICY)
    exact = steps(bases["float32"], POLICY, PlainStepper)
    errors = {}
    for way in (LeanDecoder, PlainStepper):
        each = [
            (torch.log_softmax(mine.float(), -1) - torch.log_softmax(true, -1)).abs().mean()
            for mine, true in zip(steps(bases["bfloat16"], POLICY, way), exact, strict=True)
        ]
        errors[way] = float(torch.stack(each).mean())
    assert errors[LeanDecoder] < 1.2 * errors[PlainStepper], errors
    assert errors[LeanDecoder] < 0.06


def test_two_adapters_at_once_are_not_known(folder_of):
    base = load(folder_of("llama"), "none")
    assert LeanDecoder.supports(base.lm, dense=False) and not LeanDecoder.supports(base.lm)
    base.roles.add("reward-0", head=True)
    base.model.base_model.set_adapter([POLICY, "reward-0"])
    assert not LeanDecoder.supports(base.lm, dense=False)
