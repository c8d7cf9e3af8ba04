"""Checks whether the plugins that a recipe requires are installed and work."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..entry_points import DISABLE
from ..hookspecs import PROJECT
from .records import BrokenPlugin


def check_requirement(
    requirement: str,
    loaded: Iterable[str],
    broken: Iterable[BrokenPlugin],
    no_plugins: bool,
    disabled: Iterable[str] = (),
) -> str | None:
    """The problem of one requirement, and the remedy, as text; None where the requirement is met.

    Args:
        requirement: such as `rlhf-peft-length-shaping>=0.1`.
        loaded: distributions of the plugins that work.
        broken: plugins that do not.
        no_plugins: whether `--no-plugins` leaves installed plugins out.
        disabled: distributions that the environment variable leaves out.
    """
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return (
            f"{requirement!r} is no requirement. Write a name, and a version if it matters: rlhf-peft-x>=0.1."
        )
    if parsed.url:
        return f"{requirement!r}: a recipe names a distribution and its version, never a URL."
    try:
        version = importlib.metadata.version(parsed.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{parsed.name} is not installed. Install it: pip install '{requirement}'"
    if not parsed.specifier.contains(version, prereleases=True):
        return f"{parsed.name} {version} is installed. Change it: pip install '{requirement}'"
    name = canonicalize_name(parsed.name)
    reasons = [plugin.reason for plugin in broken if plugin.distribution == name]
    if reasons:
        return f"{parsed.name} {version} is installed but was left out: {'; '.join(reasons)}"
    if no_plugins:
        return f"{parsed.name} is needed, but --no-plugins leaves installed plugins out."
    if name in disabled:
        return f"{parsed.name} is needed, but the environment variable {DISABLE} leaves it out."
    if name not in loaded:
        return f"{parsed.name} {version} is no plugin: it has no entry point of group {PROJECT}."
    return None
