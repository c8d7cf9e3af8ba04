"""The base model as it was loaded: weights, tokenizer, device and dtype, which nothing changes later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..kit.quantizer import Quantizer
from . import fingerprint as fingerprints
from .base_spec import BaseSpec
from .ends import end_ids
from .head import LmHead
from .quantize import load_model
from .tokenizer import load_tokenizer


@dataclass
class LoadedModel:
    """A causal language model, frozen and in eval mode.

    Attributes:
        spec: where it comes from and how it is held.
        lm: the model of transformers.
        device: where it is.
        dtype: that it computes in.
        quantizer: that knows its layers: the chosen one, or the one that reads what is stored quantized.
        tokenizer: of the model.
        lm_head: the language model's own head.
        eos_ids: tokens that end an answer.
    """

    spec: BaseSpec
    lm: Any
    device: torch.device
    dtype: torch.dtype
    quantizer: Quantizer
    tokenizer: Any = field(init=False)
    lm_head: LmHead = field(init=False)
    eos_ids: frozenset[int] = field(init=False)

    @classmethod
    def load(cls, spec: BaseSpec) -> LoadedModel:
        """Load a base model.

        Raises:
            ModelError: the model, its tokenizer, its device or its quantization cannot be used here.
        """
        return cls(spec, *load_model(spec))

    def __post_init__(self) -> None:
        """Load the tokenizer, and read the head."""
        self.tokenizer = load_tokenizer(self.spec, self.vocab_size)
        self.eos_ids = end_ids(self.tokenizer, self.lm.generation_config)
        self.lm_head = LmHead.of(self.lm)

    @property
    def trunk(self) -> Any:
        """The model without its language-model head."""
        return self.lm.base_model

    @property
    def width(self) -> int:
        """H, the size of a hidden state."""
        return int(self.lm_head.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: token ids from this number on have none."""
        return int(self.lm.get_input_embeddings().weight.shape[0])

    @property
    def context_length(self) -> int:
        """Tokens that the model itself takes; a million where it names no limit."""
        config = self.lm.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**20)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What this base is: `base` (its weights), `quantization` and `chat_template`; saved with every adapter."""
        return fingerprints.fingerprint(self.spec, self.tokenizer)

    def sample_ids(self) -> Tensor:
        """[3, 4] token ids, to try a forward with."""
        return (torch.arange(12, device=self.device) % self.vocab_size).view(3, 4)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Torch's global generators begin with this seed inside, and are as before on exit."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
