"""Align an open language model with human feedback on one consumer GPU.

import rlhf_peft
recipe = rlhf_peft.load_recipe("quickstart")
result = rlhf_peft.run(recipe)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = ["Result", "__version__", "load_base", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    """Import the API when it is used: `rlhf-peft --help` must not wait for torch."""
    if name in __all__:
        return getattr(import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
