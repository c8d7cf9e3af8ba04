"""`none`: weights as they are stored in the checkpoint."""

from __future__ import annotations

from rlhf_peft.plugin import Options, QuantizerBase


class NoQuantizerOptions(Options):
    """`none` has no options."""


class NoQuantizer(QuantizerBase):
    """Quantizes nothing. If a checkpoint is already quantized, the quantizer that reads it is used."""

    Options = NoQuantizerOptions

    def __init__(self, options: NoQuantizerOptions | None = None) -> None:
        self.options = options or NoQuantizerOptions()
