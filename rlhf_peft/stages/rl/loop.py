"""The RL loop: `train` is one page, read it from top to bottom. `build` in `parts` makes what it uses.

Letters: G prompts of a step, N rows (completions) of them, T tokens of the longest row.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ...errors import GuardError, PluginError
from ...recipe.schema import RlStage
from ...session.context import Context
from ...session.optimizers import advance
from ...session.policy_view import SeededContext
from ...session.sampling import sample
from ...types import Batch, Request
from . import state
from .evaluate import Answers, ScoreContext
from .forwards import RoleNeeds
from .metrics import describe
from .parts import Parts, build, load_roles
from .record import Clock, held_out_samples, outcome, samples

MOST_ROUNDS = 100
"""An algorithm that wants more prompts after so many rounds never gets enough."""


def run(stage: RlStage, ctx: Context) -> dict[str, Any]:
    """Train the policy; returns the metrics of the last step and of the evaluations before and after."""
    load_roles(stage, ctx.base)
    ctx.base.roles.freeze_reference()
    with ExitStack() as stack:  # However this ends, what was opened is closed.
        return train(build(stage, ctx, stack))


def train(parts: Parts) -> dict[str, Any]:
    """All steps of the stage, with evaluations, samples, guards and checkpoints."""
    stage, ctx = parts.stage, parts.ctx
    ctx.reporter.stage(stage.name, parts.steps)
    ctx.checkpointer.watch(parts.updater.optimizer)
    before = after = evaluate(parts, 0)
    parts.fixed_prompts.answer(0)
    # An interrupted run may have done a step whose evaluation and log are still to come.
    metrics: dict[str, float] = {}
    unlogged = state.restore(parts)
    for step in range(parts.step + (unlogged is None), parts.steps + 1):
        metrics = train_step(parts, step) if unlogged is None else unlogged
        unlogged = None
        state.snapshot(parts, metrics, logged=False)
        if parts.evaluator is not None and (stage.eval.due(step) or step == parts.steps):
            after = evaluate(parts, step)
            metrics |= after.metrics if after else {}
        ctx.log(stage.name, step, metrics)
        if step < parts.steps and stage.eval.due(step):
            parts.fixed_prompts.answer(step)
        parts.collapse.check(step, metrics)
        if step < parts.steps:
            state.snapshot(parts, metrics, logged=True)
    parts.fixed_prompts.answer(parts.steps)
    for role in parts.roles:
        if ctx.base.roles.adapter_of(role) == role:
            ctx.save_role(stage.name, parts.steps, role)
    return outcome(metrics, before, after)


def train_step(parts: Parts, step: int) -> dict[str, float]:
    """One step: sample, score, select, update; returns its metrics."""
    stage, ctx, algorithm, clock = parts.stage, parts.ctx, parts.algorithm, Clock(parts.on_phase)
    parts.step, rounds, missing_prompts = step, list[Batch](), parts.prompts_per_step
    while missing_prompts:
        # 1. Requests: what the algorithm wants sampled for the next prompts (GRPO: G groups of several rows).
        requests, rows = _requests(parts, step, len(rounds), missing_prompts)

        # 2. Rollout: the sampler answers them with the policy of this step.
        if not rounds:
            parts.sampler.sync(parts.view, step)
        batch = _rollout(parts, requests, rows, step, len(rounds))
        clock.lap("rollout")

        # 3. Forwards: log-probabilities of policy and reference, values, reward heads. Rewards that need none of
        #    them run beside, in their own processes.
        generator = ctx.generator(stage.name, "rewards", step, *([len(rounds)] if rounds else []))
        pending = parts.rewards.begin(batch, step=step, generator=generator, decode=parts.view.decode)
        parts.forwards.fill(batch, parts.needs)

        # 4. Rewards: the other ones, and their weighted sum; then the rows of all processes.
        parts.rewards.finish(pending, stage)
        rounds.append(parts.share(batch))
        clock.lap("scoring")

        # 5. Selection: which rows are trained on. Dynamic sampling goes back to 1 for more prompts.
        batch = Batch.cat(rounds)
        selection = algorithm.select(batch, len(rounds) - 1)
        missing_prompts = _missing_prompts(parts, batch, selection.more_prompts, len(rounds), step)
    batch.train, batch.zero_loss = selection.train, selection.zero_loss
    ctx.notify("rlhf_peft_rollout_end", stage=stage.name, step=step, batch=batch)

    # 6. Advantages: here a KL penalty in the reward is subtracted (`kl_placement: reward`).
    batch.columns, prepared = algorithm.prepare(batch)
    clock.lap("scoring")

    # 7. Update: epochs of minibatches; the loss is the weighted sum of the algorithm's terms.
    if not bool((batch.train & ~algorithm.no_gradient(batch)).any()):
        _look(parts, batch)
    rate = parts.scheduler.get_last_lr()[0]
    updates = parts.updater.run(batch, ctx.generator(stage.name, "permutation", step), step)
    advance(parts.scheduler)
    clock.lap("update")

    # 8. Record: metrics and samples.
    parts.tokens += int(batch.rollout.lengths.sum())
    metrics = {
        **describe(batch, stage.importance_cap),
        **batch.metrics,
        **prepared,
        **updates,
        "learning_rate": rate,
        "rows": float(batch.train.sum()),
        "sampling/rounds": float(len(rounds)),
        "num_tokens": float(parts.tokens),
        **clock.metrics(batch, algorithm.epochs),
    }
    ctx.samples(samples(stage.name, step, batch, parts.view.decode))
    return {**metrics, **algorithm.step_end(metrics)}


def evaluate(parts: Parts, step: int) -> Answers | None:
    """Answer the held-out prompts; logs at step 0, where there is no update to log with."""
    if parts.evaluator is None or not parts.ctx.ranks.main:
        return None
    answers = parts.evaluator.run(step)
    parts.ctx.samples(held_out_samples(parts.stage.name, step, answers))
    if step == 0:
        parts.ctx.log(parts.stage.name, 0, answers.metrics)
    return answers


def _requests(parts: Parts, step: int, round: int, count: int) -> tuple[list[Request], list[int]]:
    """The requests of this process, and the dataset's row of each group; every process takes as many prompts."""
    ranks = parts.ctx.ranks
    prompts = ranks.mine(parts.prompts.next(-(-count // ranks.world) * ranks.world))
    context = SeededContext(parts.sampler.params, parts.seed, step, round, ranks)
    return parts.algorithm.requests(prompts, context), [prompt.index for prompt in prompts]


def _rollout(parts: Parts, requests: list[Request], rows: list[int], step: int, round: int) -> Batch:
    """Completions of the requests; groups are numbered over all processes."""
    ctx, ranks = parts.ctx, parts.ctx.ranks
    generator = ctx.generator(parts.stage.name, "judge", step, round)
    context = ScoreContext(parts.forwards, parts.rewards, parts.view, generator, step)
    rollout = sample(parts.sampler, requests, parts.sampling_budget, context)
    dataset_rows = [rows[group] for group in rollout.group.tolist()]
    rollout.group = rollout.group * ranks.world + ranks.rank
    return Batch.of(rollout, owner=ranks.rank, dataset_rows=dataset_rows)


def _missing_prompts(parts: Parts, batch: Batch, more: int, rounds: int, step: int) -> int:
    """How many prompts a further round takes; 0: there is none.

    Raises:
        GuardError: no row has a score.
        PluginError: the algorithm wants more prompts for ever.
    """
    name = parts.stage.name
    if bool(batch.scores.isnan().all()):
        raise GuardError(f"no completion of {name} step {step} has a score: every reward abstained.")
    if more > 0 and rounds == MOST_ROUNDS:
        raise PluginError(
            f"algorithm {parts.stage.algorithm.name} still asks for {more} more prompts after {MOST_ROUNDS} rounds in "
            f"{name} step {step}: it never has enough."
        )
    return min(max(0, more), len(parts.prompts.prompts))


def _look(parts: Parts, batch: Batch) -> None:
    """Run the policy over a batch without any gradient: no update does so, and its entropy and KL are wanted."""
    if batch.old_logps is None:
        parts.forwards.fill(batch, RoleNeeds(policy=True))
