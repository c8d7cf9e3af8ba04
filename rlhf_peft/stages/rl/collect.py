"""From prompts to scored rows: what is sampled, what every role and reward says of it, and whether it is enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...data import PromptStream
from ...errors import GuardError, PluginError
from ...hookspecs import Algorithm, Sampler
from ...recipe.schema import RlStage
from ...session.context import Context
from ...session.policy_view import BaseView, SeededContext
from ...session.sampling import sample
from ...session.token_budget import Budget
from ...types import Rollout, Scored
from .forwards import Quantities, Scorer
from .record import Clock
from .rewards.rewards import Rewards, Scoring, reward_batch

MOST_ROUNDS = 100
"""An algorithm that wants more prompts after so many rounds never gets enough."""


@dataclass(slots=True)
class Collected:
    """What one iteration trains on.

    Attributes:
        scored: all rows, of all rounds.
        scoring: what the rewards gave for them.
        keep: [N] bool, rows that are trained on.
        value_hidden: N tensors [T_i, H] of the frozen reward trunk, empty for rows of other processes; or None.
        owner: [N] the process that has sampled each row.
        rounds: how often prompts were sampled.
        silent: [N] bool, rows that are not trained on and count as rows of loss 0; or None.
    """

    scored: Scored
    scoring: Scoring
    keep: Tensor
    value_hidden: list[Tensor] | None
    owner: Tensor
    rounds: int
    silent: Tensor | None = None


def ahead(algorithm: Algorithm) -> bool:
    """Whether the policy must be run over a rollout before the update.

    Not where one update is all and nobody asks before: the update's own forward then says it.
    """
    return (
        "old_logps" in algorithm.needs
        or algorithm.epochs * algorithm.minibatches > 1
        or algorithm.value == "policy"
    )


class Judge:
    """`SampleContext`: the stage's rewards, for samplers that choose among what they drew."""

    def __init__(
        self, scorer: Scorer, rewards: Rewards, view: BaseView, generator: torch.Generator, step: int
    ) -> None:
        self._scorer, self._rewards, self._view = scorer, rewards, view
        self._generator, self._step = generator, step

    def score(self, rollout: Rollout) -> Tensor:
        """[N] weighted sum of the rewards."""
        rewards = self._rewards
        said = self._scorer(
            rollout,
            logps=False,
            reference=False,
            values=False,
            heads=rewards.heads,
            readers=rewards.logp_roles,
        )
        batch = reward_batch(
            rollout, said.heads, self._step, self._generator, self._view.decode, said.readings
        )
        return rewards.score(batch).scores


class Collector:
    """Samples and scores until the algorithm has enough.

    Args:
        stage: part of the recipe.
        ctx: the run.
        algorithm: says what to sample, and what to keep.
        sampler: writes the completions.
        budget: of prompts that it answers at once.
        scorer: runs the roles.
        rewards: give the scores.
        stream: deals the prompts.
        view: the policy, for the sampler.
    """

    def __init__(
        self,
        stage: RlStage,
        ctx: Context,
        algorithm: Algorithm,
        sampler: Sampler,
        budget: Budget,
        scorer: Scorer,
        rewards: Rewards,
        stream: PromptStream,
        view: BaseView,
    ) -> None:
        self.stage, self.ctx, self.algorithm, self.sampler = stage, ctx, algorithm, sampler
        self.budget, self.scorer, self.rewards, self.stream, self.view = budget, scorer, rewards, stream, view
        self._rows: list[int] = []

    def __call__(self, step: int, clock: Clock) -> Collected:
        """One iteration's rows.

        Raises:
            GuardError: no row has a score.
            PluginError: the algorithm wants more prompts for ever.
        """
        parts: list[tuple[Scored, Scoring, list[Tensor] | None, Tensor]] = []
        want = min(self.stage.prompts_per_step, len(self.stream.prompts))
        for round in range(MOST_ROUNDS):
            rollout = self._sample(step, round, want)
            clock.lap("rollout")
            mine = self._score(rollout, step, round)
            parts.append(self._shared(*mine))
            clock.lap("scoring")
            scored = Scored.cat([part[0] for part in parts])
            if bool(scored.scores.isnan().all()):
                raise GuardError(
                    f"no completion of {self.stage.name} step {step} has a score: every reward abstained."
                )
            selection = self.algorithm.select(scored, round)
            if selection.want <= 0:
                hidden = [row for part in parts for row in part[2] or ()]
                scoring = Scoring.cat([part[1] for part in parts])
                owner = torch.cat([part[3] for part in parts])
                return Collected(
                    scored, scoring, selection.keep, hidden or None, owner, round + 1, selection.silent
                )
            want = min(selection.want, len(self.stream.prompts))
        raise PluginError(
            f"algorithm {self.stage.algorithm.name} still asks for {want} more prompts after {MOST_ROUNDS} rounds in "
            f"{self.stage.name} step {step}: it never has enough."
        )

    def _sample(self, step: int, round: int, count: int) -> Rollout:
        ranks = self.ctx.ranks
        prompts = self.stream.next(-(-count // ranks.world) * ranks.world)
        context = SeededContext(self.sampler.params, self._seed, step, round, ranks)
        mine = ranks.mine(prompts)
        requests = self.algorithm.requests(mine, context)
        if round == 0:
            self.sampler.sync(self.view, step)
        generator = self.ctx.generator(self.stage.name, "judge", step, round)
        judge = Judge(self.scorer, self.rewards, self.view, generator, step)
        rollout = sample(self.sampler, requests, self.budget, judge)
        self._rows = [mine[group].index for group in rollout.group.tolist()]
        rollout.group = rollout.group * ranks.world + ranks.rank
        return rollout

    def _shared(
        self, scored: Scored, scoring: Scoring, hidden: list[Tensor] | None
    ) -> tuple[Scored, Scoring, list[Tensor] | None, Tensor]:
        """The rows of all processes, in the order of their groups, and who has sampled each."""
        ranks = self.ctx.ranks
        if ranks.world == 1:
            return scored, scoring, hidden, torch.zeros(len(scored), dtype=torch.int64)
        each = ranks.gather((scored, scoring))
        group = torch.cat([part.rollout.group for part, _ in each])
        owner = torch.cat([torch.full((len(part),), rank) for rank, (part, _) in enumerate(each)])
        order = group.argsort(stable=True)
        everything = Scored.cat([part for part, _ in each])
        everything.rollout.group = group
        own = iter(hidden or ())
        placed = (
            [next(own) if rank == ranks.rank else torch.empty(0) for rank in owner.tolist()] if hidden else []
        )
        return (
            everything.rows(order.tolist()),
            Scoring.cat([part for _, part in each]).rows(order.tolist()),
            [placed[i] for i in order.tolist()] if hidden else None,
            owner[order],
        )

    def _seed(self, *stream: str | int) -> int:
        return self.ctx.seed(self.stage.name, *stream)

    def _score(self, rollout: Rollout, step: int, round: int) -> tuple[Scored, Scoring, list[Tensor] | None]:
        later = (round,) if round else ()
        generator = self.ctx.generator(self.stage.name, "rewards", step, *later)
        # Rewards that need no role run beside the forwards.
        given = reward_batch(rollout, {}, step, generator, self.view.decode)
        pending = self.rewards.begin(given, self._rows)
        said = self._quantities(rollout)
        scoring = self.rewards.finish(pending, said.heads, said.readings, self.stage)
        scored = Scored(
            rollout=rollout,
            mask=pad_sequence(rollout.action_mask, batch_first=True, padding_value=False),
            scores=scoring.scores,
            token_scores=scoring.token_scores,
            components=scoring.components,
            logps=said.logps,
            ref_logps=said.ref_logps,
            values=said.values,
            entropy=said.entropy,
        )
        return scored, scoring, said.value_hidden

    def _quantities(self, rollout: Rollout) -> Quantities:
        return self.scorer(
            rollout,
            logps=ahead(self.algorithm),
            reference="reference" in self.algorithm.roles,
            values="value" in self.algorithm.roles,
            heads=self.rewards.heads,
            readers=self.rewards.logp_roles,
        )
