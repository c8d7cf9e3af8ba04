"""The engine: one quantized base model, its adapters and heads, and the forwards of every role."""

from .adapters import LoraSpec
from .base import SharedBase
from .forwards import VALUE
from .head import LmHead, ScalarHead
from .memory import cap, give_back, reserve_of
from .prefix import Shared, share
from .roster import POLICY, REFERENCE
from .source import Source

__all__ = [
    "POLICY",
    "REFERENCE",
    "VALUE",
    "LmHead",
    "LoraSpec",
    "ScalarHead",
    "Shared",
    "SharedBase",
    "Source",
    "cap",
    "give_back",
    "reserve_of",
    "share",
]
