"""How a public name goes: it still works for two minor versions and says what to use instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MINORS = 2
"""Minor versions for which a deprecated name still works."""


@dataclass(frozen=True)
class Deprecated:
    """A name on its way out.

    Attributes:
        value: what it stands for as long as it works.
        since: version that deprecated it: "0.3".
        instead: what to write.
    """

    value: Any
    since: str
    instead: str

    @property
    def gone(self) -> str:
        """The first version that may lack it."""
        major, minor = (int(part) for part in self.since.split(".")[:2])
        return f"{major}.{minor + MINORS}"


def deprecated_names(module: str, names: Mapping[str, Deprecated]) -> Callable[[str], Any]:
    """A module's `__getattr__` that gives deprecated names with a DeprecationWarning.

        __getattr__ = deprecated_names(__name__, {"Old": Deprecated(New, "0.3", "New")})

    Args:
        module: its `__name__`.
        names: the deprecated ones.
    """

    def __getattr__(name: str) -> Any:
        found = names.get(name)
        if found is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        told = f"{module}.{name} is deprecated since {found.since} and goes in {found.gone}. Use {found.instead}."
        warnings.warn(told, DeprecationWarning, stacklevel=2)
        return found.value

    return __getattr__
