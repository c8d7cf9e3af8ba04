"""`none`: the weights as the checkpoint has them."""

from __future__ import annotations

from rlhf_peft.plugin import Options, QuantizerBase


class NoQuantizerOptions(Options):
    """There is nothing to choose."""


class NoQuantizer(QuantizerBase):
    """Quantizes nothing. A checkpoint that is stored quantized is used as it is, by the quantizer that reads it."""

    Options = NoQuantizerOptions

    def __init__(self, options: NoQuantizerOptions | None = None) -> None:
        self.options = options or NoQuantizerOptions()
