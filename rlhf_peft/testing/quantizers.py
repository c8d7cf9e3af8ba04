"""Checks that quantizers keep the rules of the plugin interface, on the small model that ships with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import POLICY, BaseSpec, LoraSpec, SharedBase
from ..engine.fast.dense_weights import dense_weight
from ..kit.quantizer import UNQUANTIZED, LoadCode, Quantizer, linear_sizes
from .rules import ConformanceError, make, require

COSINE = 0.999
"""Least cosine between outputs or gradients over the quantized base and over its dequantized copy."""
WORST_ERROR = 0.5
"""Largest relative error of a dequantized weight."""
SIZE = 0.1
"""Largest relative error of `bytes`."""


def check_quantizer(
    factory: Any, options: Mapping[str, Any] | None = None, *, path: str = "builtin:tiny", device: str = "cpu"
) -> None:
    """Check that a quantizer keeps the rules.

    A layer is quantized exactly where `refuses` gives no reason; its dense weight is near the original, and asking for
    it changes nothing; the model computes what its dequantized copy computes; the gradients of adapters are those over
    that copy, also after a forward in eval mode; `bytes` is what the layers take.

    Args:
        factory: what is registered.
        options: as a recipe gives them.
        path: of the model that is quantized; its layers have 64 or more inputs.
        device: that the model is loaded on.

    Raises:
        ConformanceError: a rule is broken.
    """
    quantizer = make(factory, options)
    who = f"quantizer {getattr(factory, '__name__', '')}".rstrip()
    _check_attributes(quantizer, who)
    if quantizer.bits is None:
        return
    plain = _load(path, device)
    base = _load(path, device, quantizer)
    _check_layers(base, plain, quantizer, who)
    _check_sizes(base, quantizer, who)
    _dequantize(base, plain)
    _check_outputs(base, plain, who)
    if quantizer.trainable:
        _check_gradients(base, plain, who)


def _load(path: str, device: str, quantizer: Quantizer = UNQUANTIZED) -> SharedBase:
    """The model in float32 with a random adapter, which is the same for every quantizer."""
    spec = BaseSpec(path, quantizer=quantizer, compute_dtype="float32", device=device)
    base = SharedBase(spec, LoraSpec(r=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.roles.parameters(POLICY):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return base


def _check_attributes(quantizer: Any, who: str) -> None:
    names = [name for name in vars(Quantizer) if not name.startswith("_")]
    names += list(Quantizer.__annotations__)
    for name in names:
        require(hasattr(quantizer, name), f"{who} has no `{name}`; subclass plugin.QuantizerBase.")
    require(
        isinstance(quantizer.label, str) and bool(quantizer.label.strip()),
        f"{who}.label is its name and its options in words, found {quantizer.label!r}.",
    )
    bits = quantizer.bits
    require(
        bits is None or (isinstance(bits, int | float) and 0 < bits <= 16),
        f"{who}.bits is a number up to 16, or None, found {bits!r}.",
    )
    for name in ("weight_only", "trainable"):
        value = getattr(quantizer, name)
        require(isinstance(value, bool), f"{who}.{name} is true or false, found {value!r}.")
    devices = quantizer.devices
    require(
        devices is None or (isinstance(devices, tuple) and all(isinstance(d, str) for d in devices)),
        f"{who}.devices is a tuple of words such as 'cpu', or None, found {devices!r}.",
    )
    code = quantizer.load_code(())
    require(
        code is None or isinstance(code, LoadCode),
        f"{who}.load_code gives LoadCode or None, found {type(code).__name__}.",
    )


def _layers(base: SharedBase) -> dict[str, Any]:
    """The linear layers of a base by their names in the plain model, without PEFT's wrappers."""
    model = base.lm
    names = base.roles.targets.able
    layers = {name: model.get_submodule(name) for name in names}
    return {
        name: layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        for name, layer in layers.items()
    }


@torch.no_grad()
def _check_layers(base: SharedBase, plain: SharedBase, quantizer: Quantizer, who: str) -> None:
    originals = _layers(plain)
    for name, layer in _layers(base).items():
        original, device = originals[name], base.device
        reason = quantizer.refuses(original, device)
        require(reason is None or isinstance(reason, str), f"{who}.refuses gives a reason in words or None.")
        quantized = quantizer.is_quantized(layer)
        require(
            quantized == (reason is None),
            f"{who}: refuses() says {reason!r} of {name}, but it is {'' if quantized else 'not '}quantized.",
        )
        require(not quantizer.is_quantized(original), f"{who}.is_quantized is true of a plain linear layer.")
        if quantized:
            _check_weight(layer, original.weight, quantizer, f"{who}, layer {name}")


def _check_weight(layer: nn.Module, original: Tensor, quantizer: Quantizer, who: str) -> None:
    x = torch.randn(3, original.shape[1], generator=torch.Generator().manual_seed(0)).to(original.device)
    before = layer(x)
    weight = quantizer.dense_weight(layer, torch.float32)
    require(
        isinstance(weight, Tensor) and weight.shape == original.shape and weight.dtype == torch.float32,
        f"{who}: dense_weight(layer, float32) gives a float32 tensor {tuple(original.shape)}, [out, in].",
    )
    half = quantizer.dense_weight(layer, torch.bfloat16)
    require(half.dtype == torch.bfloat16, f"{who}: dense_weight(layer, bfloat16) gives {half.dtype}.")
    error = float((weight.float() - original.float()).norm() / original.float().norm())
    require(
        error < WORST_ERROR,
        f"{who}: its dense weight is {error:.0%} away from the weight that it was made from.",
    )
    require(
        torch.equal(layer(x), before) and torch.equal(quantizer.dense_weight(layer, torch.float32), weight),
        f"{who}: dense_weight changed the layer.",
    )
    weight.add_(1.0)  # As an adapter is added to it.
    require(
        torch.equal(layer(x), before),
        f"{who}: dense_weight gives a tensor that the layer computes with, so that a merge would change the layer.",
    )


def _check_sizes(base: SharedBase, quantizer: Quantizer, who: str) -> None:
    layers = [layer for layer in _layers(base).values() if quantizer.is_quantized(layer)]
    require(bool(layers), f"{who}: no layer of {base.loaded.spec.path} is quantized.")
    declared = stored = 0
    for layer in layers:
        outputs, inputs = quantizer.dense_weight(layer, torch.bfloat16).shape
        declared += quantizer.bytes(int(inputs), int(outputs))
        stored += stored_bytes(layer)
    require(
        abs(declared - stored) <= SIZE * stored,
        f"{who}: bytes() says {declared} for {len(layers)} layers, which take {stored}.",
    )


def stored_bytes(layer: nn.Module) -> int:
    """Bytes of all tensors that a layer holds, without its bias; each storage is counted once."""
    storages: dict[int, int] = {}
    bias = getattr(layer, "bias", None)
    parts = [value for key, value in vars(layer).items() if not key.startswith("_")]
    parts += [p for p in (*layer.parameters(), *layer.buffers()) if p is not bias]
    visited: set[int] = set()
    while parts:
        part = parts.pop()
        if id(part) in visited:
            continue
        visited.add(id(part))
        if isinstance(part, Tensor) and hasattr(part, "__tensor_flatten__"):
            parts += [getattr(part, name) for name in part.__tensor_flatten__()[0]]
        elif isinstance(part, Tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            parts += [value for key, value in vars(part).items() if key != "module"]
        elif isinstance(part, Mapping):
            parts += part.values()
        elif isinstance(part, list | tuple):
            parts += part
        elif type(part).__name__.endswith("State"):  # bitsandbytes stores scales in such objects
            parts += vars(part).values()
    return sum(storages.values())


@torch.no_grad()
def _dequantize(base: SharedBase, plain: SharedBase) -> None:
    """Give the plain model the dense weights of the quantized one."""
    copies = _layers(plain)
    for name, layer in _layers(base).items():
        weight = dense_weight(layer, base.loaded.quantizer, torch.float32)
        outputs_first = linear_sizes(copies[name]) == tuple(copies[name].weight.shape[::-1])
        copies[name].weight.copy_(weight if outputs_first else weight.T)


def _ids(base: SharedBase) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(base.vocab_size, (3, 12), generator=generator).to(base.device)


@torch.no_grad()
def _check_outputs(base: SharedBase, plain: SharedBase, who: str) -> None:
    ids = _ids(base)
    with base.role(POLICY, train=False), plain.role(POLICY, train=False):
        ours, expected = base.lm(input_ids=ids).logits, plain.lm(input_ids=ids).logits
    _require_alike(ours, expected, f"{who}: the logits")


def _check_gradients(base: SharedBase, plain: SharedBase, who: str) -> None:
    """Compare the gradients of both models; this runs after forwards in eval mode, in which some layers repack."""
    ids = _ids(base)
    _require_alike(_gradient(base, ids), _gradient(plain, ids), f"{who}: the gradients of an adapter")


def _gradient(base: SharedBase, ids: Tensor) -> Tensor:
    """The gradient [n] of the log-probability of all tokens with respect to the policy's adapter."""
    mask = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
    with base.training([POLICY]) as parameters, base.role(POLICY):
        logps, _ = base.forwards.logps(base.forwards.hidden(ids), ids, mask)
        gradients = torch.autograd.grad(logps.sum(), parameters, allow_unused=True)
    missing = [g for g in gradients if g is None]
    if missing:
        raise ConformanceError(f"no gradient comes back to {len(missing)} tensors of the adapter.")
    return torch.cat([gradient.flatten().double() for gradient in gradients])


def _require_alike(ours: Tensor, expected: Tensor, what: str) -> None:
    cosine = float(torch.cosine_similarity(ours.double().flatten(), expected.double().flatten(), dim=0))
    require(
        cosine > COSINE,
        f"{what} differ from those of the dequantized copy: cosine {cosine:.5f}, expected more than {COSINE}.",
    )
