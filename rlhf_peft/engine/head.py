"""Heads: the language model's own, read so that it can be applied in chunks, and our scalar ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import maths
from ..errors import ModelError
from ..maths.logprobs import LogitKernels

HALF = (torch.bfloat16, torch.float16)
FACTORS = ("logit_scale", "lm_head_multiplier")
"""Keys of configurations that logits are multiplied by."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Keys of configurations that hold a soft cap of logits."""


@dataclass(frozen=True, slots=True)
class LmHead:
    """logits = softcap(scale * (h W' + b)), as the model itself computes them.

    Attributes:
        weight: [V, H].
        bias: [V] or None.
        scale: factor on the logits (Cohere and Falcon H1 multiply, Granite divides).
        softcap: c in c * tanh(x / c) (Gemma 2, RecurrentGemma, xLSTM), or None.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> LmHead:
        """Read from a causal LM.

        Raises:
            ModelError: it has no output embedding, or one that carries an adapter.
        """
        layer = model.get_output_embeddings()
        if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
            raise ModelError(
                f"the output embedding of {type(model).__name__} is {type(layer).__name__}, not a plain "
                "linear layer. lora.target_modules must not name it, nor may it be quantized."
            )
        config = model.config.get_text_config()
        scale = 1.0
        for name in FACTORS:
            scale *= float(getattr(config, name, None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = next((cap for name in SOFTCAPS if (cap := getattr(config, name, None)) is not None), None)
        return cls(layer.weight, layer.bias, scale, None if softcap is None else float(softcap))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] for hidden states [..., H], in the dtype of the model and rounded as the model rounds them."""
        out = nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def logps(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        entropy: bool,
        chunk: int,
        kernels: LogitKernels | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [N] of `targets` [N] after states [N, H], and entropies [N] in nats if asked."""
        return maths.token_logprobs(
            hidden,
            self.weight,
            targets,
            bias=self.bias,
            scale=self.scale,
            softcap=self.softcap,
            temperature=temperature,
            chunk=chunk,
            entropy=entropy,
            kernels=kernels,
        )


def full_product(rows: Tensor, weight: Tensor) -> Tensor | None:
    """Rows [..., in] @ weight [out, in]^T in float32, from half precision; None where that is not one product.

    A product in bfloat16 is summed in float32 and then rounded; on CUDA the rounding can be left out.
    """
    if weight.dtype not in HALF or weight.device.type != "cuda":
        return None
    flat = rows.reshape(-1, rows.shape[-1]).to(weight.dtype)
    return torch.mm(flat, weight.t(), out_dtype=torch.float32).view(*rows.shape[:-1], len(weight))


class ScalarHead(nn.Module):
    """r = (w . h + b - shift) / scale: a reward or a value from a hidden state, in float32.

    Begins as N(0, 1/(H+1)) with bias 0 (The N implementation details of RLHF with PPO, reward model, 2). The bias is
    not trained, as TRL's heads have none; only a head that was trained elsewhere brings one.
    `shift` and `scale` hold the normalisation that is fitted after reward modelling; they are saved with the
    head.
    """

    bias: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden))
        nn.init.normal_(self.weight, std=1 / math.sqrt(hidden + 1), generator=generator)
        self.register_buffer("bias", torch.zeros(1))
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[...] for hidden states [..., H]."""
        raw = nn.functional.linear(hidden.float(), self.weight, self.bias).squeeze(-1)
        return (raw - self.shift) / self.scale

    @torch.no_grad()
    def normalise(self, outputs: Tensor, *, spread: bool, mean: float = 0.0, std: float = 1.0) -> None:
        """Shift so that these outputs [N] of this head have a mean and, with `spread`, scale to a deviation."""
        center = self.shift + self.scale * outputs.mean().to(self.shift)
        if spread:
            self.scale *= (outputs.std().clamp(min=1e-6) / std).to(self.scale)
        self.shift.copy_(center - self.scale * mean)
