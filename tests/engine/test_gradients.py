"""Gradients over quantized weights, under checkpointing, and what memory they take."""

from functools import partial

import bitsandbytes
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from rlhf_peft.engine import POLICY, VALUE, LoraSpec
from rlhf_peft.engine.fast.dense_weights import dense_weight

from .support import load, stir, tokens


def policy_gradient(base, ids, attention_mask=None, keep=None):
    mask = torch.ones(ids.shape, dtype=torch.bool) if keep is None else keep
    with base.training([POLICY]) as parameters, base.role(POLICY):
        logps, _ = base.forwards.logps(base.forwards.hidden(ids, attention_mask), ids, mask)
        return [g.clone() for g in torch.autograd.grad(logps.sum(), parameters)]


def cosine(first, second):
    return float(torch.cosine_similarity(flat(first), flat(second), dim=0))


def flat(tensors):
    return torch.cat([t.flatten().double() for t in tensors])


def undone(base):
    """The same base with every quantized weight as a dense float32 one, adapters shared in value."""
    dense = load(base.loaded.spec.path, "none")
    for name, module in base.lm.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            other = dense.lm.get_submodule(name)
            weight = dense_weight(module, base.loaded.quantizer, torch.float32)
            other.weight.data = (
                weight.T.contiguous() if other.weight.shape != weight.shape else weight.clone()
            )
            assert torch.equal(dense_weight(other, dense.loaded.quantizer, torch.float32), weight)
    for mine, theirs in zip(dense.roles.parameters(POLICY), base.roles.parameters(POLICY), strict=True):
        mine.data = theirs.data.clone()
    return dense


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_gradients_over_four_bits_are_those_over_the_dequantized_weights(folder_of, name):
    base = load(folder_of(name))
    stir(base, POLICY)
    linear = [m for m in base.model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    dense, ids = undone(base), tokens(3, 12)
    expected = policy_gradient(dense, ids)
    assert cosine(policy_gradient(base, ids), expected) > 0.999

    with base.role(POLICY, train=False), torch.no_grad():
        base.lm(input_ids=ids)
    with base.decoding.as_role(POLICY, merge=False) as model:
        model.lm(input_ids=ids)
    base.forwards.hidden_of([POLICY], ids)
    assert cosine(policy_gradient(base, ids), expected) > 0.999
    assert linear and not any(module.support_avx512bf16_for_cpu for module in linear)


def test_gradients_do_not_depend_on_the_side_of_the_padding(folder_of):
    for name in ("llama", "gemma2", "gpt2"):
        base = load(folder_of(name), "none")
        stir(base, POLICY)
        row = tokens(1, 6)
        alone = policy_gradient(base, row)
        ids = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1)
        real = torch.cat([torch.zeros(1, 4), torch.ones(1, 6)], 1).long()
        keep = real.bool() & (real.cumsum(-1) > 1)
        left = policy_gradient(base, ids, real, keep)
        assert torch.allclose(flat(left), flat(alone), atol=1e-4 * float(flat(alone).abs().max())), name


# --- checkpointing: the backward pass recomputes, when another role may be active


def two_roles(folder, trunk, **options):
    base = load(folder, "none", **options)
    stir(base, POLICY, seed=1)
    base.roles.add("reward-0", head=True)
    stir(base, "reward-0", seed=2)
    like = None if trunk in (POLICY, "reward-0") else "reward-0"
    base.roles.add(VALUE, like=like, trunk=None if trunk == "own" else trunk, head=True)
    if trunk == "own":
        stir(base, VALUE, seed=3)
    base.roles.heads[VALUE].load_state_dict(base.roles.heads["reward-0"].state_dict())
    return base


def step(base, roles=(POLICY, VALUE)):
    """Gradients of a loss on two roles; the backward pass runs while neither is entered."""
    ids = tokens(2, 10)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    with base.training(roles) as parameters:
        with base.role(POLICY):
            logps, _ = base.forwards.logps(base.forwards.hidden(ids), ids, mask)
        with base.role(VALUE):
            values = base.forwards.values(base.forwards.hidden(ids))
        with base.role("reward-0"):
            (logps.sum() + values.square().sum()).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        for p in parameters:
            p.grad = None
    return gradients


def close(first, second):
    return all(
        torch.allclose(a, b, atol=1e-5 * float(b.abs().max()) + 1e-9)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("roles", [(POLICY, VALUE), (POLICY, VALUE, "reward-0")], ids=["frozen", "all"])
@pytest.mark.parametrize("trunk", ["own", POLICY, "reward-0"])
def test_checkpointing_changes_no_gradient(folder_of, trunk, roles):
    expected = step(two_roles(folder_of("llama"), trunk), roles)
    checked = two_roles(folder_of("llama"), trunk, gradient_checkpointing=True)
    assert close(step(checked, roles), expected)
    assert close(step(checked, roles), expected), "a second step"


def test_checkpointing_recomputes_each_role(folder_of):
    base = two_roles(folder_of("llama"), "own", gradient_checkpointing=True)
    calls = []
    handle = base.loaded.trunk.layers[0].mlp.register_forward_pre_hook(
        lambda *_: calls.append(base.roles.active.state.adapters)
    )
    step(base)
    handle.remove()
    assert sorted(calls) == [(POLICY,), (POLICY,), (VALUE,), (VALUE,)]


def test_checkpointing_without_roles_would_give_wrong_gradients(folder_of):
    """So the comparison above can fail, and the error would be silent."""
    roles = (POLICY, VALUE, "reward-0")
    expected = step(two_roles(folder_of("llama"), "own"), roles)
    naive = two_roles(folder_of("llama"), "own", gradient_checkpointing=True)
    for module in naive.lm.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    assert not close(step(naive, roles), expected)


def test_recomputation_is_in_the_mode_of_the_forward_and_can_be_repeated(folder_of):
    """Dropout draws the same numbers again; two backward passes over one graph recompute twice."""
    base = load(folder_of("llama"), "none", LoraSpec(r=4, dropout=0.5), gradient_checkpointing=True)
    plain = load(folder_of("llama"), "none", LoraSpec(r=4, dropout=0.5))
    ids = tokens(2, 8)
    found = []
    for each in (base, plain):
        stir(each, POLICY)
        torch.manual_seed(0)
        with each.training([POLICY]) as parameters:
            with each.role(POLICY):
                loss = each.forwards.hidden(ids).square().sum()
            with each.role(POLICY, train=False):
                first = torch.autograd.grad(loss, parameters, retain_graph=True)
                assert close(torch.autograd.grad(loss, parameters), first)
            found.append(first)
    assert close(*found)


# --- memory


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_log_probabilities_hold_no_logits_of_a_batch(folder_of):
    base = load(folder_of("wide"), "none")
    stir(base, POLICY)
    ids = tokens(12, 32)
    mask, vocabulary, chunk = torch.ones(ids.shape, dtype=torch.bool), 20000, 8
    with base.training([POLICY]), base.role(POLICY):
        hidden = base.forwards.hidden(ids)
        with Largest() as forward:
            logps, entropy = base.forwards.logps(hidden, ids, mask, entropy=True, chunk=chunk)
        with Largest() as backward:
            torch.autograd.grad((logps + entropy).sum(), base.roles.parameters(POLICY))
    allowed = max(chunk * vocabulary, base.loaded.lm_head.weight.numel())
    assert chunk * vocabulary <= forward.elements <= allowed
    assert chunk * vocabulary <= backward.elements <= allowed
    assert allowed < ids.numel() * vocabulary / 4
