"""A section that holds a plugin's own options."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class OpenSection(BaseModel):
    """A registered thing by name, with that thing's own options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    name: str = Field(description="Registered name, or `distribution:name`.")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the plugin."""
        return dict(self.model_extra or {})
