"""The short way through a layer gives what PEFT's own way gives."""

import copy

import pytest
import torch

from rlhf_peft.engine import POLICY, LoraSpec
from rlhf_peft.engine.compat.lora import lone_adapter
from rlhf_peft.engine.fast.dense_weights import dense_weight
from rlhf_peft.engine.fast.fused_lora import FusedLora, FusedMlp

from ..support import load, stir, tokens


def layers_of(base):
    return [layer for layer in base.roles.active.layers if isinstance(layer.forward, FusedLora)]


def usual(base):
    """Every layer goes PEFT's way."""
    for layer in layers_of(base):
        del layer.forward


def pass_through(base):
    """Last states, and the gradient of all that trains."""
    ids = tokens(3, 9)
    with base.training([POLICY]) as parameters, base.role(POLICY):
        hidden = base.forwards.hidden(ids)
        # Not the sum of squares: the last norm makes that a constant.
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        grads = torch.autograd.grad((hidden * weights).sum(), parameters, allow_unused=True)
    return hidden.detach(), torch.cat([g.flatten() for g in grads if g is not None])


@pytest.mark.parametrize("name", ["llama", "llama_bias", "qwen2", "gpt2", "mixtral"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_states_and_gradients_are_pefts(folder_of, name, quantization):
    base = load(folder_of(name), quantization, LoraSpec(r=4, alpha=6.0, use_rslora=True))
    stir(base, POLICY)
    ours = pass_through(base)
    assert bool(layers_of(base)) == ((name, quantization) != ("gpt2", "none"))
    usual(base)
    theirs = pass_through(base)
    assert float(theirs[1].norm()) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=2e-5 * float(other.abs().max()))


def test_no_step_of_the_outputs_size_is_kept_for_the_backward_pass(folder_of):
    base = load(folder_of("llama"), "nf4")
    stir(base, POLICY)
    kept = []
    with base.training([POLICY]), base.role(POLICY):
        layer = layers_of(base)[0]
        x = torch.randn(5, 7, layer.in_features, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            layer(x)
    assert sorted(len(shape) for shape in kept) == [2, 2, 2, 2]
    assert sum(shape.numel() for shape in kept) < x.numel() + 35 * 16 + 2 * 16 * (64 + layer.out_features) + 1


def test_dropout_goes_pefts_way(folder_of):
    base = load(folder_of("llama"), "none", LoraSpec(r=4, dropout=0.5))
    stir(base, POLICY)
    with base.training([POLICY]), base.role(POLICY), torch.no_grad():
        first, second = base.forwards.hidden(tokens(2, 6)), base.forwards.hidden(tokens(2, 6))
    assert not torch.equal(first, second)
    with base.training([POLICY]), base.without_dropout(), base.role(POLICY), torch.no_grad():
        assert torch.equal(base.forwards.hidden(tokens(2, 6)), base.forwards.hidden(tokens(2, 6)))


def test_autocast_to_another_dtype_goes_pefts_way(folder_of):
    base = load(folder_of("llama"), "none")
    layer = layers_of(base)[0]
    full = torch.randn(3, layer.in_features)
    assert layer.forward.parts(full) is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.forward.parts(full) is None and layer.forward.parts(full.bfloat16()) is not None


@pytest.mark.parametrize("name", ["llama", "llama_bias", "qwen3"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_in_bfloat16_it_is_as_near_to_float64_as_pefts_way(folder_of, name, quantization):
    """Errors of states and gradients against the very same weights in float64; PEFT computes the adapter in float32."""
    errors = {}
    for way in ("fused", "peft"):
        base = load(folder_of(name), quantization, LoraSpec(r=4, alpha=6.0), compute_dtype="bfloat16")
        stir(base, POLICY)
        exact = in_float64(base)
        if way == "peft":
            usual(base)
        states, gradient = pass_through(base)
        errors[way] = [
            float((mine.double() - true).norm() / true.norm())
            for mine, true in zip((states, gradient), exact, strict=True)
        ]
        assert gradient.dtype == torch.float32 and states.dtype == torch.bfloat16
    assert all(mine < 1.25 * other for mine, other in zip(errors["fused"], errors["peft"], strict=True)), (
        errors
    )
    assert errors["fused"][0] < 0.02 and errors["fused"][1] < 0.05


def in_float64(base):
    """Last states, and the gradient of all that trains, of the same weights in float64, by PEFT's way."""
    whole = copy.deepcopy(base.model)
    for module in whole.modules():
        module.__dict__.pop("forward", None)
    for name, module in list(whole.named_modules()):
        if base.loaded.quantizer.is_quantized(module):
            dense = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            dense.weight.data = dense_weight(module, base.loaded.quantizer, torch.bfloat16)
            if module.bias is not None:
                dense.bias.data = module.bias.data
            parent, _, last = name.rpartition(".")
            setattr(whole.get_submodule(parent), last, dense)
    whole.double()
    ids = tokens(3, 9)
    names = {id(p): name for name, p in base.model.named_parameters()}
    mine = dict(whole.named_parameters())
    parameters = [mine[names[id(p)]].requires_grad_() for p in base.roles.parameters(POLICY)]
    hidden = whole.base_model.model.base_model(input_ids=ids).last_hidden_state
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).double()
    grads = torch.autograd.grad((hidden * weights).sum(), parameters, allow_unused=True)
    return hidden.detach(), torch.cat([g.flatten() for g in grads if g is not None])


def test_the_base_alone_and_mixed_rows_go_pefts_way(folder_of):
    base = load(folder_of("llama"), "none")
    layer = layers_of(base)[0]
    with base.role("base"):
        assert lone_adapter(layer) is None
    x = torch.randn(2, 3, layer.in_features)
    with torch.no_grad():
        layer.eval()
        assert torch.equal(layer(x, adapter_names=["__base__"] * 2), layer.get_base_layer()(x))


def mlps(base):
    return [m for m in base.model.modules() if isinstance(m.__dict__.get("forward"), FusedMlp)]


@pytest.mark.parametrize("name", ["llama", "llama_bias", "qwen2", "qwen3", "gemma", "qwen2_moe"])
def test_an_mlp_as_one_step_gives_the_same(folder_of, name):
    base = load(folder_of(name), "nf4", LoraSpec(r=4, alpha=6.0))
    stir(base, POLICY)
    ours = pass_through(base)
    used = [mlp.forward._same for mlp in mlps(base)]
    # Gemma's activation is another one.
    assert used and all(same is (name != "gemma") for same in used if same is not None)
    for mlp in mlps(base):
        mlp.forward._same = False
    theirs = pass_through(base)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=2e-5 * float(other.abs().max()))


def test_an_mlp_keeps_two_tensors_of_its_width(folder_of):
    base = load(folder_of("qwen2"), "nf4")
    stir(base, POLICY)
    mlp, kept = mlps(base)[0], []
    x = torch.randn(5, 7, 64, requires_grad=True)
    with base.training([POLICY]), base.role(POLICY):
        mlp(x)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            mlp(x)
    assert kept.count((35, 128)) == 2 and kept.count((35, 64)) == 1
    assert all(
        shape[-1] <= 16 or shape[0] <= 16 or 16 in shape
        for shape in kept
        if shape not in {(35, 128), (35, 64)}
    )


def test_an_mlp_of_another_form_goes_its_own_way(folder_of):
    base = load(folder_of("qwen2"), "none")
    mlp = mlps(base)[0]
    mlp.forward._plain = lambda module, x: 2 * type(module).forward(module, x)
    x = torch.randn(2, 3, 64)
    with base.training([POLICY]), base.role(POLICY):
        assert torch.equal(mlp(x), 2 * type(mlp).forward(mlp, x))
    assert mlp.forward._same is False


def test_an_mlp_without_adapters_on_all_its_layers_goes_its_own_way(folder_of):
    base = load(folder_of("qwen2"), "nf4", LoraSpec(r=4, target_modules=("q_proj", "up_proj")))
    with base.training([POLICY]), base.role(POLICY):
        base.forwards.hidden(tokens(2, 5))
    assert all(mlp.forward._same is None for mlp in mlps(base))
