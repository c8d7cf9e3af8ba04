"""The result of one check of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: was checked.
        state: ok, note (works, with a limit) or wrong.
        detail: what was found.
        remedy: what to do about it; empty where nothing has to be done.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding for `--json`, in which the detail is called `found`."""
        return {"what": self.what, "state": self.state, "found": self.detail, "remedy": self.remedy}
