"""The engine: one quantized base model, its adapters and heads, and the forwards of every role.

Its parts are imported when they are used: transformers and PEFT take seconds to import, and `compat` needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import LoraSpec
    from .base import SharedBase
    from .base_spec import BaseSpec
    from .forwards import VALUE
    from .head import LmHead, ScalarHead
    from .memory import cap, give_back, reserve_of
    from .roles import POLICY, REFERENCE

__all__ = [
    "POLICY",
    "REFERENCE",
    "VALUE",
    "BaseSpec",
    "LmHead",
    "LoraSpec",
    "ScalarHead",
    "SharedBase",
    "cap",
    "give_back",
    "reserve_of",
]

_MODULES = {
    "adapters": ("LoraSpec",),
    "base": ("SharedBase",),
    "forwards": ("VALUE",),
    "head": ("LmHead", "ScalarHead"),
    "memory": ("cap", "give_back", "reserve_of"),
    "roles": ("POLICY", "REFERENCE"),
    "base_spec": ("BaseSpec",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
