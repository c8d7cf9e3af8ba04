"""Rules that hold for everything that a plugin registers, and the error for a broken rule."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..hookspecs.metrics import without_formula

_UNKNOWN = "no_option_has_this_name"


class ConformanceError(AssertionError):
    """A rule of the plugin interface is broken."""


def require(holds: bool | Tensor, message: str) -> None:
    """Raise `ConformanceError` with the message unless the condition holds."""
    if not bool(holds):
        raise ConformanceError(message)


def make(factory: Any, options: Mapping[str, Any] | None) -> Any:
    """Make what a factory registers, from options that are validated as those of a recipe are.

    Raises:
        ConformanceError: `Options` is absent, lets unknown keys pass, has a field without a description, or does not
            take these options.
    """
    model = getattr(factory, "Options", None)
    factory_name = getattr(factory, "__name__", str(factory))
    require(
        isinstance(model, type) and issubclass(model, BaseModel),
        f"{factory_name}: needs `Options`, a pydantic model.",
    )
    assert isinstance(model, type) and issubclass(model, BaseModel)
    require(
        model.model_config.get("extra") == "forbid",
        f"{factory_name}.Options must forbid unknown keys; subclass plugin.Options.",
    )
    bare = [name for name, field in model.model_fields.items() if not field.description]
    require(
        not bare,
        f"{factory_name}.Options: {', '.join(bare)} without a description; users read it in `schema` and in errors.",
    )
    values = dict(options or {})
    try:
        checked = model.model_validate(values)
    except ValidationError as error:
        raise ConformanceError(
            f"{factory_name}.Options does not take {values}: {' '.join(str(error).split())}"
        ) from None
    try:
        model.model_validate({**values, _UNKNOWN: 1})
    except ValidationError:
        return factory(checked)
    raise ConformanceError(f"{factory_name}.Options takes an unknown key without a word.")


@contextmanager
def global_streams_untouched(who: str) -> Iterator[None]:
    """Check that the block neither draws from the global random streams of torch, Python and numpy nor seeds them."""
    before = _streams()
    yield
    for name, state in _streams().items():
        require(
            state == before[name],
            f"{who} used {name}'s global random numbers. Draw from the generator that is given.",
        )


def _streams() -> dict[str, str]:
    states = {"torch": repr(torch.get_rng_state().tolist()), "random": repr(random.getstate())}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        _, keys, position, *rest = numpy.random.get_state()
        states["numpy"] = repr((keys.tolist(), position, rest))
    return states


def require_metrics(metrics: Any, who: str, known: Mapping[str, str] | None = None) -> None:
    """Check that metrics to log are finite numbers by name, each with its formula in `known` where that is given."""
    require(
        isinstance(metrics, Mapping),
        f"{who}: metrics are a mapping of names to numbers, found {type(metrics).__name__}.",
    )
    for name, value in metrics.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(
            number and math.isfinite(value), f"{who}: the metric {name!r} is {value!r}, not a finite number."
        )
    require_known(metrics, who, known)


def require_known(metrics: Mapping[str, Any], who: str, known: Mapping[str, str] | None) -> None:
    """Check that every metric has a formula."""
    missing = [] if known is None else sorted(without_formula(metrics, known))
    require(not missing, f"{who}: `metrics` has no formula for {', '.join(missing)}.")


def require_plain(state: Any, who: str) -> None:
    """Check that a state holds only tensors and JSON values, under keys of text."""
    if isinstance(state, Tensor) or state is None or isinstance(state, (str, bool, int, float)):
        return
    if isinstance(state, Mapping):
        require(all(isinstance(key, str) for key in state), f"{who}.state_dict(): keys are text.")
        for value in state.values():
            require_plain(value, who)
        return
    require(
        isinstance(state, (list, tuple)),
        f"{who}.state_dict() holds a {type(state).__name__}; tensors and JSON values only.",
    )
    for value in state:
        require_plain(value, who)


def require_round_trip(thing: Any, fresh: Any, who: str) -> None:
    """Check that `state_dict` is plain, and that a fresh object that loads it returns the same state."""
    state = thing.state_dict()
    require_plain(state, who)
    fresh.load_state_dict(state)
    require(
        same(fresh.state_dict(), state), f"{who}: load_state_dict(state_dict()) does not give the same state."
    )


def same(left: Any, right: Any) -> bool:
    """Whether two values are exactly equal; NaN is equal to NaN."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return (
            left.shape == right.shape
            and left.dtype == right.dtype
            and bool(torch.equal(*_filled(left, right)))
        )
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return type(left) is type(right) and bool(left == right)


def _filled(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if not left.is_floating_point():
        return left, right
    both = left.isnan() & right.isnan()
    return left.masked_fill(both, 0.0), right.masked_fill(both, 0.0)


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
