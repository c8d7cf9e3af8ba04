"""The RL loop: sample, score, prepare, update.

One iteration reads top to bottom in `_iteration`. The stage owns forwards, importance correction and the optimizer; the
algorithm sees tensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from ...data import Prompt, PromptStream, encode_prompts, require
from ...engine import POLICY, REFERENCE, VALUE, SharedBase
from ...errors import GuardError, UsageError
from ...hookspecs import Algorithm, Sampler
from ...recipe.schema import RlStage
from ..answers import FixedPrompts
from ..context import Context
from ..finite import Finite
from ..memory import Budget
from ..optimizer import advance, make_optimizer, warmup_steps
from ..sampling import prompts_at_once
from ..view import BaseView
from .collect import Collector, ahead
from .evaluate import Answers, Evaluator
from .forwards import Scorer, UpdateModule
from .guards import Guards
from .metrics import describe_scores
from .record import Clock, describe, held_out_samples, outcome, padded, sampled_rows, samples
from .rewarding import Rewards
from .update import Batch, Updater

log = logging.getLogger("rlhf_peft")

SAME_POLICY = 1e-4
"""Largest difference of log-probabilities between policy and reference before the first update."""


def run(stage: RlStage, ctx: Context) -> dict[str, Any]:
    """Train the policy; returns the figures of the last step and of the evaluations before and after."""
    base = ctx.base
    load_roles(stage, base)
    base.fix_reference()
    with ExitStack() as held:
        return _train(Loop(stage, ctx, held))


def _train(loop: Loop) -> dict[str, Any]:
    stage, ctx, base = loop.stage, loop.ctx, loop.base
    ctx.reporter.stage(stage.name, loop.steps)
    with base.without_dropout(), base.training(loop.trained) as parameters:
        loop.prepare(parameters)
        loop.check_reference()
        before = loop.evaluate(0)
        prompts = FixedPrompts(stage, ctx, getattr(loop.sampler, "inner", loop.sampler))
        prompts.answer(0)
        last: dict[str, float] = {}
        answers = before
        for step in range(loop.resume() + 1, loop.steps + 1):
            last = loop.iteration(step)
            due = stage.eval.every is not None and step % stage.eval.every == 0
            if loop.evaluator is not None and (due or step == loop.steps):
                answers = loop.evaluate(step)
                last |= answers.metrics if answers else {}
            ctx.log(stage.name, step, last)
            if step < loop.steps:
                prompts.at(step)
            loop.guards(step, last)
            ctx.saver.reached(stage, step, loop.steps, loop.trained, loop.state_dict, last)
        prompts.answer(loop.steps)
    for role in loop.trained:
        if base.adapter_of(role) == role:
            ctx.save_role(stage.name, loop.steps, role)
    return outcome(last, before, answers)


def _release(holder: Sampler | Rewards) -> None:
    """Close it; that this failed is said, and changes nothing about how the stage ends."""
    try:
        holder.close()
    except Exception as error:
        log.warning("%s could not release what it held: %s", type(holder).__name__, error)


def load_roles(stage: RlStage, base: SharedBase) -> None:
    """Load what the stage's `init` names."""
    for role, reference in stage.init.items():
        if role == "reward":
            base.load_ensemble(role, reference)
        else:
            base.load_role(role, reference, head=role != "policy")


class Loop:
    """The state of one RL stage.

    Args:
        stage: part of the recipe.
        ctx: the run.
        held: at its end, however it comes, sampler and rewards release what they hold.
    """

    def __init__(self, stage: RlStage, ctx: Context, held: ExitStack | None = None) -> None:
        self.held = held or ExitStack()
        self.stage, self.ctx, self.base = stage, ctx, ctx.base
        self.algorithm: Algorithm = ctx.registry.make(
            "algorithms", stage.algorithm.name, stage.algorithm.options
        )
        self.sampler: Sampler = ctx.registry.make("samplers", stage.sampler.name, stage.sampler.options)
        self.held.callback(_release, self.sampler)
        self._check_sampler()
        self.rewards = Rewards(ctx.registry, stage.rewards, self.base, stage=stage.name)
        self.held.callback(_release, self.rewards)
        self.value_roles = self._make_value()
        self.trained = [POLICY, *self.value_roles]
        self.view = BaseView(self.base)
        tokens = ctx.recipe.model.tokens_per_forward
        scoring, self.updating, self.sampling = (
            Budget(stage.name, tokens),
            Budget(stage.name, tokens),
            prompts_at_once(stage.name),
        )
        self.budgets = [scoring, self.updating, self.sampling]
        self.scorer = Scorer(self.base, self.algorithm.value, self.sampler.params.temperature, scoring)
        self.stream, self.evaluator = self._data()
        self.collector = Collector(
            stage,
            ctx,
            self.algorithm,
            self.sampler,
            self.sampling,
            self.scorer,
            self.rewards,
            self.stream,
            self.view,
        )
        epochs = max(1, int(stage.num_train_epochs * max(1, self.prompts // stage.prompts_per_step)))
        self.steps = stage.max_steps or epochs
        self.step, self.tokens = 0, 0
        self.guards = Guards(stage)

    def _check_sampler(self) -> None:
        where = f"stages.{self.stage.name}.sampler"
        params, name = self.sampler.params, self.stage.algorithm.name
        if params.temperature <= 0:
            raise UsageError(
                f"{where}.temperature: 0 draws nothing, so there is no distribution to learn from. Use 1.0."
            )
        if "on_policy" not in self.algorithm.needs or "on_policy" in self.sampler.provides:
            return
        if params.truncated:
            raise UsageError(
                f"{where}: top_p, top_k and min_p cut off a part of the distribution, and {name} needs draws from all "
                "of it. Leave them out, or use an algorithm without ratios: online_dpo, rejection_sampling."
            )
        raise UsageError(
            f"{where}.name: {self.stage.sampler.name} does not draw from the policy's own distribution, which {name} "
            "needs. Use cached, or an algorithm without ratios: online_dpo, rejection_sampling."
        )

    def _make_value(self) -> list[str]:
        """The value role on the trunk that the algorithm asks for; begins as the reward model where there is one."""
        trunk = self.algorithm.value
        if trunk is None or "value" in self.stage.init:
            return [] if trunk is None else [VALUE]
        first = next((role for role in self.base.roles if role.startswith("reward")), None)
        if trunk == "reward" and first is None:
            raise UsageError(
                f"stages.{self.stage.name}.algorithm.value: `reward` stands on a reward model and there is none. "
                "Use `own` or `policy`, or train a reward model first."
            )
        if trunk == "own":
            self.base.add_role(VALUE, like=first or POLICY, head=True)
        else:
            on = POLICY if trunk == "policy" else first
            self.base.add_role(VALUE, like=first if trunk == "reward" else None, trunk=on, head=True)
        return [VALUE]

    def _data(self) -> tuple[PromptStream, Evaluator | None]:
        stage, ctx = self.stage, self.ctx
        rows, held_out = ctx.train_and_held_out(stage)
        encoder = ctx.encoder(stage.dataset)

        def encode(dataset: Any, source: str) -> Sequence[Prompt]:
            require(dataset, "rl", source, stage=stage.name)
            new = self.sampler.params.max_new_tokens
            return encode_prompts(
                dataset,
                encoder,
                max_new_tokens=new,
                on_bad_row=stage.dataset.on_bad_row,
                on_long_row=stage.dataset.on_long_row,
                source=source,
                stage=stage.name,
            )

        prompts = encode(rows, stage.dataset.path or str(stage.dataset.name))
        self.prompts = len(prompts)
        stream = PromptStream(
            prompts, ctx.seed(stage.name, "data"), min(stage.prompts_per_step, len(prompts))
        )
        evaluator = None
        if held_out is not None:
            source = stage.eval.dataset or stage.dataset
            asked = encode(held_out, source.path or str(source.name))[: stage.eval.size]
            rewards = Rewards(
                ctx.registry, stage.rewards, self.base, stage=stage.name, measured=stage.eval.rewards
            )
            self.held.callback(_release, rewards)
            seed = lambda *stream: ctx.seed(stage.name, *stream)  # noqa: E731
            evaluator = Evaluator(
                asked, self.sampler, prompts_at_once(stage.name), rewards, self.scorer, seed
            )
        return stream, evaluator

    def prepare(self, parameters: list[nn.Parameter]) -> None:
        """Optimizer, schedule and the module that computes the loss's parts."""
        from accelerate import Accelerator

        stage, base = self.stage, self.base
        # The trunk computes in the base's dtype already; adapters and heads stay float32.
        accelerator = Accelerator(cpu=base.device.type == "cpu", mixed_precision="no")
        entropy = "entropy" in self.algorithm.needs or not ahead(self.algorithm)
        self.module = UpdateModule(base, self.algorithm.value, self.scorer.temperature, entropy)
        value = [p for role in self.value_roles for p in base.parameters(role)]
        rate = stage.value_learning_rate or stage.learning_rate
        groups = [
            {"params": base.parameters(POLICY), "lr": stage.learning_rate},
            {"params": value, "lr": rate},
        ]
        optimizer = make_optimizer(stage, [g for g in groups if g["params"]])
        # No DistributedDataParallel: `Updater` sums gradients at the end of a minibatch, whatever each process has
        # computed till then.
        self.optimizer = accelerator.prepare(optimizer, device_placement=[False])
        self.ctx.ranks.same(parameters)
        self.scheduler = get_scheduler(
            stage.lr_scheduler if stage.lr_scheduler != "constant" else "constant_with_warmup",
            optimizer,
            num_warmup_steps=warmup_steps(stage.warmup, self.steps),
            num_training_steps=self.steps,
        )
        self.updater = Updater(
            self.module,
            base,
            self.algorithm,
            accelerator,
            self.ctx.ranks,
            self.optimizer,
            parameters,
            max_grad_norm=stage.max_grad_norm,
            budget=self.updating,
            pad_id=self.view.pad_id,
            importance_cap=stage.importance_cap,
            finite=Finite(stage.name, stage.max_bad_steps),
        )

    def check_reference(self) -> None:
        """Policy and reference must say the same of real text before the first update.

        Raises:
            GuardError: they do not: the KL would be measured against the wrong model.
        """
        ids = torch.stack([max((p.ids for p in self.stream.prompts[:8]), key=len)]).to(self.base.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        said = []
        for role in (POLICY, REFERENCE):
            with torch.no_grad(), self.base.role(role, train=False):
                said.append(self.base.logps(self.base.hidden(ids), ids, mask)[0])
        difference = float((said[0] - said[1]).abs().max())
        if not difference <= SAME_POLICY:  # nor is NaN the same
            raise GuardError(
                f"before the first update the policy and its reference differ by {difference:.2g} nats a token (at "
                f"most {SAME_POLICY:g}): the KL would be measured against the wrong model."
            )

    def state_dict(self) -> dict[str, Any]:
        """What the loop has changed so far, beside its roles."""
        held_out = None if self.evaluator is None else self.evaluator.rewards.state_dict()
        keeps = self.sampler.state_dict() if hasattr(self.sampler, "state_dict") else None
        return {
            "step": self.step,
            "tokens": self.tokens,
            "skipped": self.updater.finite.in_a_row,
            "budgets": [budget.amount for budget in self.budgets],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "rewards": self.rewards.state_dict(),
            "held_out_rewards": held_out,
            "sampler": keeps,
            "prompts": self.stream.state_dict(),
            "guards": self.guards.state_dict(),
        }

    def resume(self) -> int:
        """Go on from a checkpoint, if there is one of this stage; returns the last step that was done."""
        state = self.ctx.saver.state(self.stage)
        if state is None:
            return 0
        self.step, self.tokens = state["step"], state["tokens"]
        self.updater.finite.in_a_row = state["skipped"]
        for budget, amount in zip(self.budgets, state["budgets"], strict=True):
            budget.amount = amount
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.rewards.load_state_dict(state["rewards"])
        if self.evaluator is not None and state["held_out_rewards"] is not None:
            self.evaluator.rewards.load_state_dict(state["held_out_rewards"])
        if state["sampler"] is not None:
            self.sampler.load_state_dict(state["sampler"])  # type: ignore[attr-defined]
        self.stream.load_state_dict(state["prompts"])
        self.guards.load_state_dict(state["guards"])
        self.ctx.saver.go_on(state)
        return self.step

    def iteration(self, step: int) -> dict[str, float]:
        """One rollout and its updates; returns the step's figures."""
        self.step, clock = step, Clock()
        # 1. Completions, what all roles and rewards say of them, and the rows to train on.
        got = self.collector(step, clock)
        scored, keep = got.scored, got.keep
        self.ctx.tell("rlhf_peft_rollout_end", stage=self.stage.name, step=step, scored=scored)
        # 2. Advantages.
        columns, prepared = self.algorithm.prepare(scored, keep)
        clock.lap("scoring")
        # 3. Updates.
        batch = Batch(
            scored=scored,
            columns=columns,
            keep=keep,
            unit=self.algorithm.unit(scored, keep),
            idle=self.algorithm.idle(scored, columns),
            sampler_logps=padded(scored.rollout.sampler_logps),
            value_hidden=got.value_hidden,
            owner=got.owner,
            silent=got.silent,
        )
        if not bool((keep & ~batch.idle).any()):
            self._look(batch)
        rate = self.scheduler.get_last_lr()[0]
        updates = self.updater(batch, self.ctx.generator(self.stage.name, "permutation", step), step)
        advance(self.scheduler)
        clock.lap("update")
        # 4. Figures and samples.
        self.tokens += int(scored.rollout.lengths.sum())
        stats = {
            **describe_scores(sampled_rows(scored)),
            **describe(scored, batch.seen, self.stage.importance_cap),
            **got.scoring.metrics,
            **prepared,
            **updates,
            "learning_rate": rate,
            "rows": float(keep.sum()),
            "sampling/rounds": float(got.rounds),
            "num_tokens": float(self.tokens),
            **clock.figures(scored.rollout, keep, self.algorithm.epochs),
        }
        self.ctx.samples(samples(self.stage.name, step, scored, got.scoring, self.view.decode))
        return {**stats, **self.algorithm.step_end(stats)}

    def _look(self, batch: Batch) -> None:
        """Run the policy over a rollout that tells it nothing: no update does, and its figures are wanted."""
        if bool(batch.seen.any()):
            return
        said = self.scorer(batch.scored.rollout, reference=False, values=False)
        batch.scored.logps, batch.scored.entropy = said.logps, said.entropy
        batch.seen[:] = True

    def evaluate(self, step: int) -> Answers | None:
        """Answer the held-out prompts; logs at step 0, where there is no update to log with."""
        if self.evaluator is None or not self.ctx.ranks.main:
            return None
        answers = self.evaluator(self.view, step)
        self.ctx.samples(held_out_samples(self.stage.name, step, answers))
        if step == 0:
            self.ctx.log(self.stage.name, 0, answers.metrics)
        return answers
