"""Whether the reference is the model that the policy begins as."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine import POLICY, REFERENCE, SharedBase
from ..errors import GuardError

SAME_POLICY = 1e-4
"""Largest difference of log-probabilities between policy and reference before the first update, in nats a token."""


def check_reference(base: SharedBase, rows: Sequence[list[int]]) -> None:
    """Policy and reference must give the same log-probabilities of real text before the first update.

    Args:
        base: with both roles.
        rows: token ids of real text; the longest row is read.

    Raises:
        GuardError: they do not: the KL would be measured against the wrong model.
    """
    ids = torch.tensor([max(rows, key=len)], device=base.device)
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
