"""The request to a vLLM server's `/v1/completions`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from rlhf_peft.plugin import SamplingParams


def completion_request(
    prompt: Tensor, seed: int, max_tokens: int, params: SamplingParams, eos_ids: Collection[int]
) -> dict[str, Any]:
    """The body of a request for one row. Penalties are set, because the model's defaults may be others.

    Args:
        prompt: [P] int64.
        seed: seed of the row.
        max_tokens: most tokens of the completion.
        params: how tokens are drawn.
        eos_ids: tokens that end a completion.

    Returns:
        The body without the model's name.
    """
    request = {
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
        request |= {"stop": list(params.stop), "include_stop_str_in_output": True}
    return request
