"""The forwards of the RL stage: what every role gives for a rollout, and what is trained.

Letters: N rows of a batch, n rows of one forward, T tokens of the longest row, H the width of a hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data import length_batches, pad_right
from ...engine import POLICY, REFERENCE, VALUE, SharedBase
from ...engine.memory import states_fit
from ...kit.upload import upload
from ...session.token_budget import TokenBudget
from ...types import Batch, Outputs

ValueTrunk = Literal["own", "policy", "reward"] | None


@dataclass(frozen=True, slots=True)
class RoleNeeds:
    """What is to be computed of a batch.

    Attributes:
        policy: log-probabilities and entropies of the policy.
        reference: log-probabilities of the reference.
        values: of the value role.
        heads: reward roles whose heads are run.
        role_logps: of "base" and "reference", those whose log-probabilities at temperature 1 a reward reads.
    """

    policy: bool = False
    reference: bool = False
    values: bool = False
    heads: tuple[str, ...] = ()
    role_logps: tuple[str, ...] = ()


class RoleForwards:
    """Runs roles over rows.

    Args:
        base: the shared base.
        value: trunk of the value head: its own adapter, the policy's or the reward model's; None: there is none.
        temperature: of the sampling distribution; log-probabilities of policy and reference are those at it.
        budget: of tokens in one forward.
    """

    def __init__(self, base: SharedBase, value: ValueTrunk, temperature: float, budget: TokenBudget) -> None:
        self.base, self.value, self.temperature, self.budget = base, value, temperature, budget

    def fill(self, batch: Batch, needs: RoleNeeds) -> None:
        """Write into the batch what roles give for its rows, without gradients, in float32, 0 where no action is.

        Args:
            batch: gets `old_logps` and `entropy`, `ref_logps`, `values` and `value_hidden`, `heads`, `role_logps`.
            needs: which of them.
        """
        shape = batch.mask.shape
        if needs.policy:
            batch.old_logps, batch.entropy = torch.zeros(shape), torch.zeros(shape)
        if needs.reference:
            batch.ref_logps = torch.zeros(shape)
        if needs.values:
            batch.values = torch.zeros(shape)
            batch.value_hidden = [torch.empty(0)] * len(batch) if self.value == "reward" else None
        batch.heads.update({role: torch.zeros(len(batch)) for role in needs.heads})
        batch.role_logps.update({role: torch.zeros(shape) for role in needs.role_logps})
        lengths, groups = batch.rollout.lengths.tolist(), batch.rollout.group.tolist()
        size = sum(lengths) * self.base.loaded.width * self.base.dtype.itemsize
        keeps = batch.value_hidden is not None and states_fit(size, self.base.device)

        def attempt(tokens: int) -> None:
            nonlocal keeps
            keeps_now, keeps = keeps, False  # A second attempt means that memory does not suffice.
            for rows in length_batches(lengths, max_tokens=tokens, group=groups):
                self._fill_rows(batch, rows, needs, keeps_now)

        self.budget.within(attempt, max(lengths), len(lengths) * max(lengths))

    @torch.no_grad()
    def _fill_rows(self, batch: Batch, rows: list[int], needs: RoleNeeds, keeps: bool) -> None:
        forwards, lengths = self.base.forwards, batch.rollout.lengths[rows]
        ids, mask = self.padded(batch, rows)
        hidden = self._hidden(ids, mask, needs)

        def put(whole: Tensor | None, values: Tensor | None) -> None:
            if whole is not None and values is not None:
                whole[rows, : values.shape[1]] = values.float().cpu()

        if needs.policy:
            logps, entropy = forwards.logps(
                hidden[POLICY], ids, mask, temperature=self.temperature, entropy=True
            )
            put(batch.old_logps, logps)
            put(batch.entropy, entropy)
        if needs.reference:
            put(
                batch.ref_logps, forwards.logps(hidden[REFERENCE], ids, mask, temperature=self.temperature)[0]
            )
        for role in needs.role_logps:
            put(batch.role_logps[role], forwards.logps(hidden[role], ids, mask)[0])
        for role in needs.heads:
            batch.heads[role][rows] = forwards.rewards(hidden[role], lengths, role).float().cpu()
        if needs.values:
            trunk = hidden[POLICY] if self.value == "policy" else hidden[VALUE]
            put(batch.values, torch.where(upload(mask, trunk.device), forwards.values(trunk), 0.0))
        if needs.values and batch.value_hidden is not None:
            for row, length, states in zip(rows, lengths.tolist(), hidden[VALUE], strict=True):
                own = states[:length]
                batch.value_hidden[row] = own.clone() if keeps else own.cpu()

    def _hidden(self, ids: Tensor, mask: Tensor, needs: RoleNeeds) -> dict[str, Tensor]:
        """Hidden states of every role that is needed; a prompt of several rows is read once."""
        forwards = self.base.forwards
        own_value = needs.values and self.value != "policy"
        roles = [REFERENCE] * needs.reference + [*needs.heads] + [VALUE] * own_value + [*needs.role_logps]
        shared, ids = forwards.share_prompts(ids, mask), upload(ids, self.base.device)
        hidden = forwards.hidden_of(list(dict.fromkeys(roles)), ids, shared=shared) if roles else {}
        if needs.policy:
            with self.base.role(POLICY, train=False):
                hidden[POLICY] = forwards.hidden(ids, shared=shared)
        return hidden

    def padded(self, batch: Batch, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids and actions [n, T] of some rows on the CPU, padded on the right, as wide as the longest.

        They stay there because what is done next depends on them: a mask that is read back from a card makes the host
        wait for all that the card has still to do.
        """
        rollout = batch.rollout
        ids = pad_right([rollout.input_ids[i] for i in rows], self.base.tokenizer.pad_token_id)
        return ids, pad_right([rollout.action_mask[i] for i in rows], False)

    def outputs(
        self, input_ids: Tensor, mask: Tensor, value_hidden: Tensor | None = None, *, entropy: bool = False
    ) -> Outputs:
        """What policy and value give now, with gradients.

        Args:
            input_ids: [n, T] on the CPU, padded on the right.
            mask: [n, T] bool on the CPU, actions.
            value_hidden: [n, T, H] of the frozen reward trunk, where the value head stands on it.
            entropy: also the entropies.
        """
        base, forwards = self.base, self.base.forwards
        shared = forwards.share_prompts(input_ids, mask)
        ids = upload(input_ids, base.device)
        with base.role(POLICY):
            hidden = forwards.hidden(ids, shared=shared)
            logps, entropies = forwards.logps(
                hidden, input_ids, mask, temperature=self.temperature, entropy=entropy
            )
        values = None
        if self.value == "policy":
            values = forwards.values(hidden)
        elif self.value == "reward" and value_hidden is not None:
            values = forwards.values(value_hidden)
        elif self.value == "own":
            with base.role(VALUE):
                values = forwards.values(forwards.hidden(ids, shared=shared))
        return Outputs(logps, values, entropies)
