"""Whether a server samples from the very model that is trained: both say how likely the same tokens are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_peft.plugin import PolicyView, SamplerError, SamplingParams

from .vllm_request import body

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 16
FAR = 1.0
"""Nats a token; quantization moves log-probabilities by half of it at most."""
LOOSE, NOISE = 0.4, 0.1
"""Where log-probabilities hardly differ from token to token: differences of this share of their spread, and at least
so many nats."""

Complete = Callable[[dict[str, Any]], tuple[list[int], list[float], str]]


def check_base(who: str, policy: PolicyView, complete: Complete) -> None:
    """Compare the server's log-probabilities of what it draws with the policy's own.

    Args:
        who: begins the message.
        policy: what the server was given.
        complete: asks the server for one completion: token ids, log-probabilities, why it ended.

    Raises:
        SamplerError: they are of another model.
    """
    most = max(1, min(NEW_TOKENS, policy.max_length - PROMPT_TOKENS))
    params = SamplingParams(most)
    with policy.decoder() as model:
        size = policy.vocab_size
        stream = torch.Generator().manual_seed(0)
        pairs = []
        for seed in range(PROMPTS):
            prompt = torch.randint(
                size // 8, max(size // 2, size // 8 + 1), (PROMPT_TOKENS,), generator=stream
            )
            tokens, theirs, _ = complete(body(prompt, seed, most, params, policy.eos_ids))
            ours = _logps(model, prompt.to(policy.device), torch.tensor(tokens, device=policy.device))
            pairs.append((torch.tensor(theirs), ours.cpu()))
    server, own = (torch.cat(side) for side in zip(*pairs, strict=True))
    apart = (server - own).abs()
    spread = float(apart.square().mean().sqrt())
    if float(apart.mean()) > FAR or spread > max(NOISE, LOOSE * float(own.std())):
        raise SamplerError(
            f"{who}: the server's log-probabilities differ from the policy's by {float(apart.mean()):.2f} nats a token "
            f"on {len(own)} tokens, so it serves another base than the recipe's model.path, or another revision of it. "
            "Start it with that very base; where the difference is meant, set sampler.check_base=false."
        )


@torch.no_grad()
def _logps(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """[T]: the policy's log-probability of each token."""
    row = torch.cat([prompt, tokens])[None]
    logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
