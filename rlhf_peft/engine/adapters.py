"""Adapters: their shape, and how they are put on the model, copied, filled and taken off.

Everything here leaves the active adapter and every `requires_grad` as they were, which PEFT's own methods do
not.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..errors import ModelError
from ..kit.upload import upload
from .compat.lora import BaseTunerLayer, adapter_parameters, carries
from .targets import ALL_LINEAR, Targets, short_kinds

PLAIN_INITS = (True, False, "gaussian", "orthogonal")
"""Initialisations that leave the base's weights alone; others (pissa, olora, ...) subtract from them."""


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The shape of an adapter, as a recipe's `lora` gives it."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False

    def config(self, base: str) -> LoraConfig:
        """PEFT's configuration; `base` is the hub id or path that is written into it."""
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.use_rslora,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
        )


def fitted(config: LoraConfig, layers: Collection[str] | None, conv1d: bool, base: str) -> LoraConfig:
    """A copy of a configuration for this base.

    Args:
        config: of a recipe, of another role, or as it was stored.
        layers: full names of those that it is to be put on; None: what it names itself.
        conv1d: whether the base has GPT-2's transposed layers, unquantized.
        base: the hub id or path of the base.
    """
    changed: dict[str, Any] = {
        "inference_mode": False,
        "task_type": "CAUSAL_LM",
        "modules_to_save": None,
        "init_lora_weights": True,
        "fan_in_fan_out": conv1d,
        "base_model_name_or_path": base,
    }
    if layers is not None:
        changed["target_modules"] = set(layers)
    made = copy.deepcopy(config)
    for key, value in changed.items():
        setattr(made, key, value)
    return made


def unsupported(config: LoraConfig) -> str | None:
    """What a stored adapter does that roles cannot: fused layers and merging know plain LoRA alone."""
    unsupported = [
        key
        for key in ("use_dora", "use_qalora", "lora_bias", "target_parameters")
        if getattr(config, key, None)
    ]
    unsupported += [
        key for key in ("trainable_token_indices", "alora_invocation_tokens") if getattr(config, key, None)
    ]
    if getattr(config, "bias", "none") != "none":
        unsupported.append(f"bias={config.bias}")
    if config.init_lora_weights not in PLAIN_INITS:
        unsupported.append(f"init_lora_weights={config.init_lora_weights}")
    return ", ".join(unsupported) or None


def layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Every layer that carries adapters."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def parameters(model: nn.Module, adapter: str) -> list[nn.Parameter]:
    """The adapter's parameters, found by place, for a model may have a module of the same name."""
    return [p for layer in layers(model) for p in adapter_parameters(layer, adapter).values()]


def _named_parameters(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters under PEFT's names; a layer that stands in two places has two names, as in PEFT."""
    return {
        f"{path}.{name}": parameter
        for path, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, BaseTunerLayer)
        for name, parameter in adapter_parameters(layer, adapter).items()
    }


def add(
    model: Any,
    name: str,
    config: LoraConfig,
    targets: Targets,
    weights: Mapping[str, Tensor] | None = None,
    where: str = "",
) -> None:
    """Put a new adapter on the model, without gradients, with these weights or fresh ones.

    Args:
        model: PEFT's model.
        name: of the adapter.
        config: its shape.
        targets: the linear layers of the base.
        weights: its tensors; None: fresh ones.
        where: begins the message where something does not fit.

    Raises:
        ModelError: it names a layer that cannot have it, or the weights do not fit.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    try:
        with warnings.catch_warnings():
            # PEFT tells of patterns that meet no layer; what must be met is checked above.
            warnings.simplefilter("ignore", UserWarning)
            model.add_adapter(name, config)
    except BaseException as error:
        for layer in layers(model):  # PEFT leaves those that it has got to
            layer.delete_adapter(name)
        if isinstance(error, ValueError):
            raise ModelError(f"{where}lora.target_modules: {error}") from error
        raise
    finally:
        model.requires_grad_(False)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    for layer in layers(model):
        layer.train(training)
    try:
        check_places(model, name, targets)
        if weights is not None:
            fill(model, name, weights, where)
    except ModelError:
        remove(model, name)
        raise


def remove(model: Any, name: str) -> None:
    """Take an adapter off the model; if it was active, none is."""
    for layer in layers(model):
        layer._active_adapter = [other for other in layer.active_adapters if other != name]
    model.delete_adapter(name)


def check_targets(model: nn.Module, config: LoraConfig, targets: Targets, where: str = "") -> None:
    """Raise ModelError if a listed target is no module of the model, or a pattern meets none.

    PEFT minds only if all of a list are not, and before 0.21 not always if a pattern meets none.
    """
    if config.target_modules is None:
        raise ModelError(f"{where}lora.target_modules: is null, and names no layer. {_ADVICE}")
    _check_patterns(config, where)
    names = [name for name, _ in model.named_modules()]
    if isinstance(config.target_modules, str):
        pattern = config.target_modules
        if pattern != ALL_LINEAR and not any(re.fullmatch(pattern, name) for name in names):
            raise ModelError(
                f"{where}lora.target_modules: {pattern!r} is not found in this base: the full name of no layer matches "
                f"it. {_ADVICE}"
            )
        return
    paths = [name.split(".") for name in names]
    known = {".".join(path[start:]) for path in paths for start in range(len(path))}
    unknown = sorted(set(config.target_modules or ()) - known)
    if unknown:
        stacked = next(
            (x for x in targets.stacked if x.rsplit(".", 1)[-1] == unknown[0].rsplit(".", 1)[-1]), None
        )
        what = f" as a layer: {stacked} holds the weights of several experts" if stacked else ""
        raise ModelError(
            f"{where}lora.target_modules: {unknown[0]} is not in this base{what}. Layers that can carry an adapter "
            f"are {', '.join(short_kinds(targets.able))}. {_ADVICE}"
        )


_ADVICE = f"{ALL_LINEAR} means all of its linear layers that can carry one."


def _check_patterns(config: LoraConfig, where: str) -> None:
    patterns = [config.target_modules, config.exclude_modules, *(config.rank_pattern or ())]
    for pattern in [*patterns, *(config.alpha_pattern or ()), config.layers_pattern]:
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ModelError(
                    f"{where}lora.target_modules: the pattern {pattern!r} is no regular expression ({error})."
                ) from error


def check_able(config: LoraConfig, targets: Targets) -> None:
    """Raise ModelError if a target that a recipe names meets only layers that cannot carry an adapter."""
    target_modules = config.target_modules or ()
    for target in [target_modules] if isinstance(target_modules, str) else sorted(target_modules):
        alone = copy.deepcopy(config)
        alone.target_modules = target if isinstance(target_modules, str) else {target}
        able, unable = targets.chosen(alone)
        if unable and not able:
            raise ModelError(
                f"lora.target_modules: {target} cannot carry an adapter in this base: "
                f"{targets.unable[unable[0]]}. Layers that can are {', '.join(short_kinds(targets.able))}. {_ADVICE}"
            )


def check_places(model: Any, name: str, targets: Targets) -> None:
    """Raise ModelError if an adapter is on the shared head, or where it cannot be merged."""
    head = model.base_model.model.get_output_embeddings()
    linear = {*targets.able, *targets.unable}
    for path, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        place = path.removeprefix("base_model.model.")
        if carries(layer, name) and (layer is head or place not in linear):
            kind = type(layer.get_base_layer()).__name__
            what = "the output embedding" if layer is head else f"of type {kind}"
            raise ModelError(
                f"lora.target_modules: {place} is {what}; adapters go on "
                f"linear layers inside the model. Use lora.target_modules={ALL_LINEAR} or name other layers."
            )


def state(model: Any, adapter: str) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names.

    They are PEFT's `get_peft_model_state_dict`, which makes the host wait for each 4-bit layer of the base to take down
    its quantization state as well.
    """
    return {key: parameter.detach() for key, parameter in _named_parameters(model, adapter).items()}


def snapshot(model: Any, adapter: str) -> dict[str, Tensor]:
    """A copy of the adapter's tensors under PEFT's names."""
    return {key: value.detach().clone() for key, value in state(model, adapter).items()}


def fill(model: Any, adapter: str, weights: Mapping[str, Tensor], where: str) -> None:
    """Load an adapter's tensors; every key must fit. `where` begins the message if one does not.

    Raises:
        ModelError: a key is missing, unexpected or misshapen.
    """
    expected = {key: tuple(value.shape) for key, value in state(model, adapter).items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    misshapen = sorted(key for key in expected.keys() & given.keys() if expected[key] != given[key])
    for keys, what in ((missing, "lacks"), (extra, "has no place for"), (misshapen, "has other shapes for")):
        if keys:
            raise ModelError(
                f"{where}the adapter {what} {len(keys)} tensors, the first {keys[0]}. It was made for "
                "another base or with another lora.target_modules or lora.r."
            )
    with torch.no_grad():
        for key, parameter in _named_parameters(model, adapter).items():
            parameter.copy_(upload(weights[key], parameter.device))
