"""Completions for many requests, all at once or, where memory does not suffice, in parts."""

from __future__ import annotations

from collections.abc import Sequence

from ..hookspecs import SampleContext, Sampler
from ..types import Request, Rollout
from .token_budget import TokenBudget


def prompts_at_once(stage: str) -> TokenBudget:
    """Of prompts that are answered at once: all of them, while they fit."""
    return TokenBudget(stage, None, "prompts are answered at once", None)


def sample(
    sampler: Sampler, requests: Sequence[Request], budget: TokenBudget, context: SampleContext | None = None
) -> Rollout:
    """A rollout of the requests; those of one prompt are never parted.

    Args:
        sampler: writes the completions.
        requests: in the order of their groups.
        budget: of prompts at once.
        context: for samplers that choose among what they drew.
    """
    prompts: list[list[Request]] = []
    for request in requests:
        if not prompts or prompts[-1][0].group != request.group:
            prompts.append([])
        prompts[-1].append(request)

    def attempt(many: int) -> Rollout:
        parts = []
        for first in range(0, len(prompts), many):
            batch = [request for prompt in prompts[first : first + many] for request in prompt]
            parts.append(sampler.sample(batch) if context is None else sampler.sample(batch, context))
        return Rollout.cat(parts, groups="keep")

    return budget.within(attempt, 1, max(1, len(prompts)))
