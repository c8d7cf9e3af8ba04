"""Checks that a server samples from the model that is trained, by comparing log-probabilities of the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_peft.plugin import PolicyView, SamplerError, SamplingParams

from .vllm_request import completion_request

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 16
FAR = 1.0
"""Largest mean difference in nats per token; quantization causes at most half of it."""
LOOSE, NOISE = 0.4, 0.1
"""Largest difference as a share of the log-probabilities' standard deviation, but at least `NOISE` nats. This finds
another model even if all log-probabilities are similar."""

Complete = Callable[[dict[str, Any]], tuple[list[int], list[float], str]]


def check_base(who: str, policy: PolicyView, complete: Complete) -> None:
    """Compare the server's log-probabilities of its own samples with the policy's.

    Args:
        who: beginning of the message.
        policy: the policy that the server was given.
        complete: requests one completion from the server: token ids, log-probabilities, finish reason.

    Raises:
        SamplerError: the log-probabilities are those of another model.
    """
    most = max(1, min(NEW_TOKENS, policy.max_length - PROMPT_TOKENS))
    params = SamplingParams(most)
    with policy.decoding() as decoding:
        size = policy.vocab_size
        stream = torch.Generator().manual_seed(0)
        pairs = []
        for seed in range(PROMPTS):
            prompt = torch.randint(
                size // 8, max(size // 2, size // 8 + 1), (PROMPT_TOKENS,), generator=stream
            )
            tokens, server_row, _ = complete(completion_request(prompt, seed, most, params, policy.eos_ids))
            policy_row = _logps(
                decoding.lm, prompt.to(policy.device), torch.tensor(tokens, device=policy.device)
            )
            pairs.append((torch.tensor(server_row), policy_row.cpu()))
    server_logps, policy_logps = (torch.cat(side) for side in zip(*pairs, strict=True))
    difference = (server_logps - policy_logps).abs()
    spread = float(difference.square().mean().sqrt())
    if float(difference.mean()) > FAR or spread > max(NOISE, LOOSE * float(policy_logps.std())):
        raise SamplerError(
            f"{who}: the server's log-probabilities differ from the policy's by {float(difference.mean()):.2f} nats a "
            f"token on {len(policy_logps)} tokens, so it serves another base than the recipe's model.path, or another "
            "revision of it. Start it with that very base; where the difference is meant, set "
            "sampler.check_base=false."
        )


@torch.no_grad()
def _logps(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """The policy's log-probability of each token, [T]."""
    row = torch.cat([prompt, tokens])[None]
    logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
