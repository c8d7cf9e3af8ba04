"""Every architecture, quantized and not: our forwards give what the model itself gives."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf_peft.engine import POLICY, REFERENCE

from .support import ARCHITECTURES, EOS, PAD, everything, load, stir, tokens

NAMES = [name for name in ARCHITECTURES if name not in ("falcon", "wide")]


@pytest.fixture(scope="module", params=[(n, q) for n in NAMES for q in ("nf4", "none")], ids="-".join)
def base(request, folder_of):
    """A base whose policy changes nothing, and whose reward role does."""
    name, quantization = request.param
    base = load(folder_of(name), quantization)
    base.roles.freeze_reference()
    for index in range(2):
        base.roles.add(f"reward-{index}", head=True)
        stir(base, f"reward-{index}", seed=index)
    return base


def logits(base, role, ids):
    with base.role(role, train=False), torch.no_grad():
        return base.lm(input_ids=ids, use_cache=False).logits.float()


def test_the_policy_begins_as_the_base(base):
    ids = tokens(3, 9)
    assert torch.equal(logits(base, POLICY, ids), logits(base, REFERENCE, ids))
    assert not torch.allclose(logits(base, "reward-0", ids), logits(base, REFERENCE, ids), atol=1e-2)


def gradients(base, loss):
    parameters = base.roles.parameters("reward-0")[:-1]  # without its head
    return torch.autograd.grad(loss, parameters)


def test_log_probabilities_are_those_of_the_models_own_logits(base):
    ids, temperature = tokens(3, 9), 0.7
    mask = torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) < 0.7
    with base.training(["reward-0"]), base.role("reward-0"):
        logps, entropy = base.forwards.logps(
            base.forwards.hidden(ids), ids, mask, temperature=temperature, entropy=True, chunk=4
        )
        ours = gradients(base, logps.sum() - 0.3 * entropy.sum())
        whole = (
            base.lm(input_ids=ids, use_cache=False).logits.float().div(temperature).log_softmax(-1)[:, :-1]
        )
        picked = whole.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
        spread = -(whole.exp() * whole).sum(-1) * mask[:, 1:]
        theirs = gradients(base, picked.sum() - 0.3 * spread.sum())
    assert torch.allclose(logps[:, 1:], picked, atol=2e-5) and not logps[:, 0].any()
    assert torch.allclose(entropy[:, 1:], spread, atol=2e-5) and not entropy[:, 0].any()
    assert all(g.abs().max() > 0 for g in ours)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-4 * float(other.abs().max()))


def test_several_roles_at_once_equal_one_after_the_other(base):
    roles, ids = [REFERENCE, "reward-0", POLICY, "reward-1"], tokens(3, 9)
    before = everything(base)
    together = base.forwards.hidden_of(roles, ids)
    assert everything(base) == before
    for role in roles:
        with base.role(role, train=False), torch.no_grad():
            assert torch.allclose(together[role], base.forwards.hidden(ids), atol=1e-5), role
    assert not torch.allclose(together["reward-0"], together["reward-1"], atol=1e-2)


def test_the_decoder_with_merged_weights_is_the_role(base):
    ids = tokens(2, 9)
    before = everything(base)
    expected = logits(base, "reward-0", ids)
    with base.decoding.as_role("reward-0", merge=True) as model:
        merged = model.lm(input_ids=ids, use_cache=False).logits.float()
        assert not any("lora" in type(module).__module__ for module in model.lm.modules())
    with base.decoding.as_role("reward-0", merge=False) as model:
        assert torch.equal(model.lm(input_ids=ids, use_cache=False).logits.float(), expected)
    assert torch.allclose(merged, expected, atol=1e-4)
    assert everything(base) == before
    assert torch.equal(logits(base, "reward-0", ids), expected)


def rows_of(base, rows, side, pad):
    """Log-probabilities, values and the reward of each row, when they are padded together on a side."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.full((len(rows), width), pad)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place], real[i, place] = row, True
    actions = real & (real.long().cumsum(-1) > 2)
    with base.role("reward-0", train=False), torch.no_grad():
        hidden = base.forwards.hidden(ids, real.long() if side == "left" else None)
        logps, _ = base.forwards.logps(hidden, ids, actions)
        values = base.forwards.values(hidden, "reward-0")
        ends = lengths if side == "right" else torch.full_like(lengths, width)
        rewards = base.forwards.rewards(hidden, ends, "reward-0")
    return [(logps[i][actions[i]], values[i][actions[i]], rewards[i]) for i in range(len(rows))]


def test_padding_and_company_change_nothing(base):
    long, short = tokens(1, 11, seed=1)[0], tokens(1, 6, seed=2)[0]
    short[3] = EOS
    alone = [rows_of(base, [row], "right", PAD)[0] for row in (long, short)]
    for side, pad in (("right", PAD), ("right", EOS), ("left", PAD), ("left", EOS)):
        for found, expected in zip(rows_of(base, [long, short], side, pad), alone, strict=True):
            for mine, other in zip(found, expected, strict=True):
                assert torch.allclose(mine, other, atol=1e-5), (side, pad)


@pytest.mark.parametrize("quantization", ["fp4", "int8"])
def test_other_quantizations(folder_of, quantization):
    base = load(folder_of("llama"), quantization)
    base.roles.freeze_reference()
    base.roles.add("reward-0", head=True)
    stir(base, "reward-0")
    test_the_policy_begins_as_the_base(base)
    test_log_probabilities_are_those_of_the_models_own_logits(base)
    ids = tokens(2, 9)
    before, expected = everything(base), logits(base, "reward-0", ids)
    with base.decoding.as_role("reward-0", merge=True) as model:
        merged = model.lm(input_ids=ids, use_cache=False).logits.float()
    near = 1e-4 if quantization == "fp4" else 0.2  # int8 rounds activations too
    assert torch.allclose(merged, expected, atol=near)
    assert everything(base) == before
    assert torch.equal(logits(base, "reward-0", ids), expected)


def test_quantized_logits_are_near_the_originals(folder_of):
    """Also of GPT-2, whose weights are stored the other way round."""
    for name in ("llama", "gpt2"):
        ids = tokens(2, 9)
        exact = logits(load(folder_of(name), "none"), POLICY, ids)
        near = logits(load(folder_of(name), "nf4"), POLICY, ids)
        assert torch.corrcoef(torch.stack([exact.flatten(), near.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_half_precision_keeps_what_trains_in_full(folder_of, name):
    base = load(folder_of(name), "nf4", compute_dtype="bfloat16")
    base.roles.add("reward-0", head=True)
    stir(base, "reward-0")
    ids = tokens(3, 9)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    assert base.dtype == torch.bfloat16 == base.loaded.lm_head.weight.dtype
    assert {p.dtype for p in [*base.roles.parameters(POLICY), *base.roles.parameters("reward-0")]} == {
        torch.float32
    }
    found = base.forwards.hidden_of([POLICY, "reward-0"], ids)
    with base.role("reward-0", train=False), torch.no_grad():
        assert torch.allclose(base.forwards.hidden(ids), found["reward-0"], atol=0.05)
    logps, _ = base.forwards.logps(found["reward-0"], ids, mask)
    assert logps.dtype == torch.float32
    assert base.forwards.values(found["reward-0"], "reward-0").dtype == torch.float32
    with base.decoding.as_role("reward-0", merge=True) as model:
        merged = model.lm(input_ids=ids, use_cache=False).logits.float()
    expected = logits(base, "reward-0", ids)
    assert float((merged - expected).abs().mean() / expected.abs().mean()) < 0.03


def in_plain_peft(folder, adapter, ids, weights, dtype):
    """Log-probabilities and the adapter's gradient in plain transformers and PEFT, the weights rounded to bfloat16."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(dtype)
    model = PeftModel.from_pretrained(plain, adapter, is_trainable=True)
    model = model.double() if dtype == torch.float64 else model
    logits = model(input_ids=ids).logits[:, :-1]
    logps = (logits if dtype == torch.float64 else logits.float()).log_softmax(-1)
    picked = logps.gather(-1, ids[:, 1:, None])[..., 0]
    (picked * weights).sum().backward()
    return picked.detach(), {
        n.replace(".default.", "."): p.grad for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_half_precision_is_no_further_from_double_than_plain_peft(folder_of, tmp_path, name):
    base = load(folder_of(name), "none", compute_dtype="bfloat16")
    stir(base, POLICY)
    base.roles.save(POLICY, tmp_path)
    ids, mask = tokens(4, 48), torch.ones(4, 48, dtype=torch.bool)
    weights = torch.randn(4, 47, generator=torch.Generator().manual_seed(1))
    with base.training([POLICY]), base.role(POLICY):
        ours = base.forwards.logps(base.forwards.hidden(ids), ids, mask)[0][:, 1:]
        (ours * weights).sum().backward()
        mine = {n.replace(f".{POLICY}.", "."): p.grad for n, p in base.model.named_parameters()}
    exact, true = in_plain_peft(folder_of(name), tmp_path, ids, weights, torch.float64)
    plain, theirs = in_plain_peft(folder_of(name), tmp_path, ids, weights, torch.bfloat16)

    def error(logps):
        return float((logps.double() - exact).abs().mean())

    def angle(gradient):
        one, other = (torch.cat([g[name].double().flatten() for name in true]) for g in (gradient, true))
        return 1 - float(torch.nn.functional.cosine_similarity(one, other, dim=0))

    assert 0 < error(ours.detach()) < 1.1 * error(plain)
    assert 0 < angle(mine) < 1.1 * angle(theirs)
