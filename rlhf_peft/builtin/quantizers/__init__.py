"""Quantizers: `nf4` (the default), `fp4`, `int8`, and `none` for unquantized weights."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .four_bits import Fp4, Nf4
from .int8 import Int8
from .none import NoQuantizer


@hookimpl
def rlhf_peft_register_quantizers(register: Register) -> None:
    """Register the built-in quantizers."""
    register("nf4", Nf4)
    register("fp4", Fp4)
    register("int8", Int8)
    register("none", NoQuantizer)
