"""Checks a whole plugin: everything that its module registers, by the rules of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..registry import Entry, Registry
from .algorithms import check_algorithm
from .datasets import check_dataset
from .environments import check_environment
from .quantizers import check_quantizer
from .rewards import check_reward
from .rules import ConformanceError
from .samplers import check_sampler

CHECKS: dict[str, Callable[..., None]] = {
    "rewards": check_reward,
    "samplers": check_sampler,
    "algorithms": check_algorithm,
    "datasets": check_dataset,
    "environments": check_environment,
    "quantizers": check_quantizer,
}


@dataclass(frozen=True)
class Finding:
    """The result of checking one registered thing.

    Attributes:
        kind: a kind of `REGISTERS`; "hooks" for the module itself.
        name: as registered.
        problem: the rule that is broken, or None.
        skipped: why it could not be checked, or None.
    """

    kind: str
    name: str
    problem: str | None = None
    skipped: str | None = None

    def __str__(self) -> str:
        """One line: `ok`, `FAILED` or `skipped`, the kind and name, and the reason."""
        word = "FAILED" if self.problem else "skipped" if self.skipped else "ok"
        why = self.problem or self.skipped
        return f"{word:<8}{self.kind.removesuffix('s')} {self.name}{': ' if why else ''}{why or ''}"


def check_plugin(
    module: Any, options: Mapping[str, Mapping[str, Any]] | None = None, *, name: str = "plugin"
) -> list[Finding]:
    """Check that a plugin can be registered beside the built-ins, and that what it registers keeps the rules.

    Args:
        module: with functions marked `hookimpl`.
        options: registered name to options, where the defaults are not enough.
        name: of the plugin, for messages.

    Returns:
        One finding for each registered thing; those without a `problem` are in order.

    Raises:
        PluginError: it cannot be registered: a wrong signature, a taken name, another HOOK_API.
    """
    loaded = Registry.load(no_plugins=True).add(module, name, name, "0")
    hooks = [Finding("hooks", hook) for hook in loaded.hooks]
    return hooks + list(check_entries(loaded.entries, options or {}))


def check_entries(entries: Iterable[Entry], options: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
    """Check registered things, each by the rules of its kind; yields one finding for each."""
    for entry in entries:
        values = options.get(entry.name, {})
        try:
            entry.options.model_validate(dict(values))
        except ValidationError as error:
            missing = ", ".join(".".join(map(str, e["loc"])) or e["msg"] for e in error.errors())
            yield Finding(entry.kind, entry.name, skipped=f"its options need a value: {missing}")
            continue
        yield Finding(entry.kind, entry.name, problem=_problem(entry, values))


def _problem(entry: Entry, options: Mapping[str, Any]) -> str | None:
    try:
        CHECKS[entry.kind](entry.factory, options)
    except ConformanceError as error:
        return str(error)
    except Exception as error:
        return f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return None
