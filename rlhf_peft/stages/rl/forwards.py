"""The forwards of the RL stage: one pass that scores a rollout under every role, and the module that is updated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ...data import length_batches, pad_right
from ...engine import POLICY, REFERENCE, VALUE, Shared, SharedBase, share
from ...session.token_budget import Budget
from ...types import Rollout

ValueTrunk = Literal["own", "policy", "reward"] | None


@dataclass(slots=True)
class Quantities:
    """What the roles say of a rollout, on the CPU, in float32; None where it was not asked for.

    Attributes:
        logps: [N, T] of the policy.
        ref_logps: [N, T] of the reference.
        values: [N, T].
        entropy: [N, T] in nats.
        heads: reward role to [N].
        readings: role ("base", "reference") to [N, T] log-probabilities at temperature 1.
        value_hidden: N tensors [T_i, H] of the frozen reward trunk, where the value head stands on it.
    """

    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    values: Tensor | None = None
    entropy: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    readings: dict[str, Tensor] = field(default_factory=dict)
    value_hidden: list[Tensor] | None = None


def shared_prompts(base: SharedBase, input_ids: Tensor, mask: Tensor, lengths: Tensor) -> Shared | None:
    """The rows taken apart, so that a prompt of several is read once; None where it cannot be or does not pay.

    Args:
        base: whose trunk reads them.
        input_ids: [n, T] padded on the right.
        mask: [n, T] bool, actions.
        lengths: [n] tokens of each row.
    """
    if len(input_ids) < 2 or not base.forwards.shares:
        return None
    starts = mask.to(torch.uint8).argmax(-1)
    return None if bool((starts == 0).any()) else share(input_ids, starts.cpu(), lengths)


class UpdateModule(nn.Module):
    """Policy and value in one forward.

    Args:
        base: the shared base.
        value: trunk of the value head, or None.
        temperature: of the sampling distribution.
        entropy: also give entropies.
    """

    def __init__(self, base: SharedBase, value: ValueTrunk, temperature: float, entropy: bool) -> None:
        super().__init__()
        self.model, self.heads = base.model, base.roles.heads
        self._base = (base,)
        self._value, self._temperature, self._entropy = value, temperature, entropy

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor,
        value_hidden: Tensor | None = None,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities, values and entropies, each [n, T], of rows padded on the right.

        Args:
            input_ids: [n, T].
            mask: [n, T] bool, actions.
            value_hidden: [n, T, H] of the frozen reward trunk, where the value head stands on it.
            shared: the rows taken apart, where prompts are read once.
        """
        base = self._base[0]
        with base.role(POLICY):
            hidden = base.forwards.hidden(input_ids, shared=shared)
            logps, entropy = base.forwards.logps(
                hidden, input_ids, mask, temperature=self._temperature, entropy=self._entropy
            )
        values = None
        if self._value == "policy":
            values = base.forwards.values(hidden)
        elif self._value == "reward" and value_hidden is not None:
            values = base.forwards.values(value_hidden)
        elif self._value == "own":
            with base.role(VALUE):
                values = base.forwards.values(base.forwards.hidden(input_ids, shared=shared))
        return logps, values, entropy


class Scorer:
    """Runs every role over a rollout, without gradients.

    Args:
        base: the shared base.
        value: trunk of the value head, or None.
        temperature: of the sampling distribution.
        budget: of tokens in one forward.
    """

    def __init__(self, base: SharedBase, value: ValueTrunk, temperature: float, budget: Budget) -> None:
        self.base, self.value, self.temperature, self.budget = base, value, temperature, budget

    def __call__(
        self,
        rollout: Rollout,
        *,
        logps: bool = True,
        reference: bool = True,
        values: bool = True,
        heads: tuple[str, ...] = (),
        readers: tuple[str, ...] = (),
    ) -> Quantities:
        """All that is asked for, of every row.

        Args:
            rollout: the rows.
            logps: of the policy, with entropies.
            reference: log-probabilities of the reference.
            values: where there is a value role.
            heads: reward roles.
            readers: roles whose log-probabilities at temperature 1 a reward reads: "base", "reference".
        """
        shape = (len(rollout), int(rollout.lengths.max()))
        with_values = values and self.value is not None
        out = Quantities(
            logps=torch.zeros(shape) if logps else None,
            ref_logps=torch.zeros(shape) if reference else None,
            values=torch.zeros(shape) if with_values else None,
            entropy=torch.zeros(shape) if logps else None,
            heads={role: torch.zeros(len(rollout)) for role in heads},
            readings={role: torch.zeros(shape) for role in readers},
            value_hidden=[torch.empty(0)] * len(rollout) if with_values and self.value == "reward" else None,
        )
        frozen = self._frozen(reference, with_values, heads, readers)
        lengths, groups = rollout.lengths.tolist(), rollout.group.tolist()

        def attempt(tokens: int) -> None:
            for rows in length_batches(lengths, max_tokens=tokens, group=groups):
                self._batch(rollout, rows, frozen, out)

        self.budget.within(attempt, max(lengths), len(lengths) * max(lengths))
        return out

    def _frozen(
        self, reference: bool, values: bool, heads: tuple[str, ...], readers: tuple[str, ...]
    ) -> list[str]:
        """The roles that are only read."""
        own = [VALUE] if values and self.value in ("own", "reward") else []
        return list(dict.fromkeys([*([REFERENCE] if reference else []), *heads, *own, *readers]))

    @torch.no_grad()
    def _batch(self, rollout: Rollout, rows: list[int], frozen: list[str], out: Quantities) -> None:
        base, lengths = self.base, rollout.lengths[rows]
        ids = pad_right([rollout.input_ids[i] for i in rows], base.tokenizer.pad_token_id).to(base.device)
        mask = pad_right([rollout.action_mask[i] for i in rows], False).to(base.device)
        width = ids.shape[1]
        shared = shared_prompts(base, ids, mask, lengths)
        hidden = base.forwards.hidden_of(frozen, ids, shared=shared) if frozen else {}
        if out.logps is not None and out.entropy is not None:
            with base.role(POLICY, train=False):
                hidden[POLICY] = base.forwards.hidden(ids, shared=shared)
            logps, entropy = base.forwards.logps(
                hidden[POLICY], ids, mask, temperature=self.temperature, entropy=True
            )
            out.logps[rows, :width] = logps.float().cpu()
            if entropy is not None:
                out.entropy[rows, :width] = entropy.float().cpu()
        if out.ref_logps is not None:
            reference, _ = base.forwards.logps(hidden[REFERENCE], ids, mask, temperature=self.temperature)
            out.ref_logps[rows, :width] = reference.float().cpu()
        for role in out.readings:
            out.readings[role][rows, :width] = base.forwards.logps(hidden[role], ids, mask)[0].float().cpu()
        for role in out.heads:
            out.heads[role][rows] = base.forwards.rewards(hidden[role], lengths, role).float().cpu()
        if out.values is not None:
            on = hidden[POLICY] if self.value == "policy" else hidden[VALUE]
            out.values[rows, :width] = torch.where(mask, base.forwards.values(on), 0.0).float().cpu()
        if out.value_hidden is not None:
            for row, length, states in zip(rows, lengths.tolist(), hidden[VALUE], strict=True):
                out.value_hidden[row] = states[:length].cpu()
