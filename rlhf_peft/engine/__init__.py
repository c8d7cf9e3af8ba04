"""The engine: one quantized base model, its adapters and heads, and the forwards of every role."""

from .adapters import LoraSpec
from .base import POLICY, REFERENCE, VALUE, SharedBase
from .head import LmHead, ScalarHead
from .quantize import Source

__all__ = ["POLICY", "REFERENCE", "VALUE", "LmHead", "LoraSpec", "ScalarHead", "SharedBase", "Source"]
