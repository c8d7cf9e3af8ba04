"""What `/v1/completions` of a vLLM server is asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from rlhf_peft.plugin import SamplingParams


def body(
    prompt: Tensor, seed: int, max_tokens: int, params: SamplingParams, eos_ids: Collection[int]
) -> dict[str, Any]:
    """A request for one row; penalties are named, for those of the model are the default.

    Args:
        prompt: [P] int64.
        seed: of the row.
        max_tokens: most tokens of the completion.
        params: how it is drawn.
        eos_ids: tokens that end it.

    Returns:
        All of it but the model's name.
    """
    asked = {
        "prompt": prompt.tolist(),
        "n": 1,
        "seed": seed % 2**63,
        "max_tokens": max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(eos_ids),
        "logprobs": 0,
        "return_token_ids": True,
    }
    if params.stop:
        asked |= {"stop": list(params.stop), "include_stop_str_in_output": True}
    return asked
