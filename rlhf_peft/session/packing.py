"""Any state made of tensors, numbers, text, lists and mappings, as JSON beside named tensors, and back."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, cast

import numpy
import torch
from torch import Tensor

MARK = "__is__"
"""Key of an object that stands for what JSON has not."""


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON and copies of the tensors of a state. Keys need not be text; floats that are not finite survive.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, "state", tensors), tensors


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy of its own: a view would be saved with all that it is a view of.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {MARK: "tensor", "name": name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {MARK: "float", "value": str(value)}
    if isinstance(value, list):
        return [_pack(item, f"{place}[{i}]", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        items = [_pack(item, f"{place}[{i}]", tensors) for i, item in enumerate(value)]
        return {MARK: "tuple", "items": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and MARK not in value:
            return {key: _pack(item, f"{place}.{key}", tensors) for key, item in value.items()}
        pairs = [[_pack(k, place, tensors), _pack(v, f"{place}[{k!r}]", tensors)] for k, v in value.items()]
        return {MARK: "mapping", "items": pairs}
    raise TypeError(f"{place} is a {type(value).__name__}; a state holds tensors and what JSON holds")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state again."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    kind = packed.get(MARK)
    if kind is None:
        return {key: unpack(item, tensors) for key, item in packed.items()}
    if kind == "tensor":
        return tensors[packed["name"]]
    if kind == "float":
        return float(packed["value"])
    items = packed["items"]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in items)
    return {unpack(key, tensors): unpack(item, tensors) for key, item in items}


def random_state() -> dict[str, Any]:
    """Of Python, NumPy and torch, on every device."""
    kind, keys, *rest = cast(tuple[Any, ...], numpy.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from such a state."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
