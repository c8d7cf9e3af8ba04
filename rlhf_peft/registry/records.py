"""Records of the registry: registered entries, plugins that work, and plugins that do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ..hookspecs import HOOK_API, Factory


@dataclass(frozen=True)
class Entry:
    """Something that a plugin registers.

    Attributes:
        kind: one of `hookspecs.REGISTERS`.
        name: that recipes use.
        factory: makes it from its options.
        distribution: of the plugin.
        version: of the distribution.
    """

    kind: str
    name: str
    factory: Factory
    distribution: str
    version: str

    @property
    def options(self) -> type[BaseModel]:
        """The model of its options."""
        model: type[BaseModel] = self.factory.Options  # type: ignore[attr-defined]
        return model

    def __str__(self) -> str:
        """Text for messages: `reward length (rlhf-peft-length 0.1)`."""
        return f"{self.kind.removesuffix('s')} {self.name} ({self.distribution} {self.version})"


@dataclass
class LoadedPlugin:
    """A plugin that works.

    Attributes:
        name: of its entry point, or of its file.
        distribution: that it comes from.
        version: of the distribution.
        origin: `built-in`, `installed`, `file` or `given`.
        module: with its hooks; None until it is imported.
        api: the hook API that it is written for.
        entries: that it registers.
        hooks: names of the hooks that it observes.
        notes: what it changed while it was imported, as text.
    """

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
        """Text for messages: `plugin length (rlhf-peft-length 0.1)`."""
        return f"plugin {self.name} ({' '.join(filter(None, (self.distribution, self.version)))})"

    @property
    def remedy(self) -> str:
        """Advice on how to run without the plugin."""
        if self.origin == "file":
            return f"Leave out the option that names {self.name}.py."
        return (
            f"Leave it out: rlhf-peft --no-plugins ..., or RLHF_PEFT_DISABLE_PLUGINS={self.distribution}; or remove "
            f"it: rlhf-peft plugins uninstall {self.distribution}"
        )


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was left out, with the reason."""

    name: str
    distribution: str
    reason: str
    version: str = ""

    def __str__(self) -> str:
        """One line of text for a warning."""
        return f"plugin {self.name} ({self.distribution}) was left out: {self.reason}"
