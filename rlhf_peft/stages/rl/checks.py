"""What must hold before the first step of an RL stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...engine import POLICY, REFERENCE, SharedBase
from ...errors import GuardError, UsageError
from ...hookspecs import Algorithm, Sampler
from ...recipe.schema import RlStage

SAME_POLICY = 1e-4
"""Largest difference of log-probabilities between policy and reference before the first update, in nats."""


def check_sampler(stage: RlStage, algorithm: Algorithm, sampler: Sampler) -> None:
    """The sampler must draw from the policy's own distribution where the algorithm takes ratios.

    Raises:
        UsageError: it does not, or it draws nothing.
    """
    key = f"stages.{stage.name}.sampler"
    params, name = sampler.params, stage.algorithm.name
    if params.temperature <= 0:
        raise UsageError(
            f"{key}.temperature: 0 draws nothing, so there is no distribution to learn from. Use 1.0."
        )
    if "on_policy" not in algorithm.needs or "on_policy" in sampler.provides:
        return
    if params.truncated:
        raise UsageError(
            f"{key}: top_p, top_k and min_p cut off a part of the distribution, and {name} needs draws from all "
            "of it. Leave them out, or use an algorithm without ratios: online_dpo, rejection_sampling."
        )
    raise UsageError(
        f"{key}.name: {stage.sampler.name} does not draw from the policy's own distribution, which {name} "
        "needs. Use cached, or an algorithm without ratios: online_dpo, rejection_sampling."
    )


def check_reference(base: SharedBase, prompts: Sequence[Tensor]) -> None:
    """Policy and reference must give the same log-probabilities of real text before the first update.

    Args:
        base: with both roles.
        prompts: [P] token ids each; the longest one is read.

    Raises:
        GuardError: they do not: the KL would be measured against the wrong model.
    """
    ids = max(prompts, key=len).unsqueeze(0).to(base.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    logps = []
    for role in (POLICY, REFERENCE):
        with torch.no_grad(), base.role(role, train=False):
            logps.append(base.forwards.logps(base.forwards.hidden(ids), ids, mask)[0])
    difference = float((logps[0] - logps[1]).abs().max())
    if not difference <= SAME_POLICY:  # nor is NaN the same
        raise GuardError(
            f"before the first update the policy and its reference differ by {difference:.2g} nats a token (at "
            f"most {SAME_POLICY:g}): the KL would be measured against the wrong model."
        )
