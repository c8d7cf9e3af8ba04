"""What the registry holds: plugins that work, plugins that do not, and what is registered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ..hookspecs import HOOK_API, Factory


@dataclass(frozen=True)
class Entry:
    """Something registered: its kind and name, who makes it, and who offers it."""

    kind: str
    name: str
    factory: Factory
    distribution: str
    version: str

    @property
    def options(self) -> type[BaseModel]:
        """Its options."""
        model: type[BaseModel] = self.factory.Options  # type: ignore[attr-defined]
        return model

    def __str__(self) -> str:
        """`reward length (rlhf-peft-length 0.1)`."""
        return f"{self.kind.removesuffix('s')} {self.name} ({self.distribution} {self.version})"


@dataclass
class Loaded:
    """A plugin that works."""

    name: str
    distribution: str
    version: str
    origin: str
    module: Any
    api: int = HOOK_API
    entries: list[Entry] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """`plugin length (rlhf-peft-length 0.1)`."""
        return f"plugin {self.name} ({' '.join(filter(None, (self.distribution, self.version)))})"

    @property
    def remedy(self) -> str:
        """How to go on without it."""
        if self.origin == "file":
            return f"Leave out the option that names {self.name}.py."
        return (
            f"Leave it out: rlhf-peft --no-plugins ..., or RLHF_PEFT_DISABLE_PLUGINS={self.distribution}; or remove "
            f"it: rlhf-peft plugins uninstall {self.distribution}"
        )


@dataclass(frozen=True)
class Broken:
    """A plugin that was left out, and why."""

    name: str
    distribution: str
    reason: str
    version: str = ""

    def __str__(self) -> str:
        """One line for a warning."""
        return f"plugin {self.name} ({self.distribution}) was left out: {self.reason}"
