"""What the RL loop is made of: built once, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from transformers import get_scheduler

from ...data import Prompt, PromptStream, encode_prompts, require
from ...engine import POLICY, VALUE, SharedBase
from ...errors import UsageError
from ...hookspecs import Algorithm, Sampler, WrappingSampler
from ...recipe.schema import RlStage
from ...session.context import Context
from ...session.fixed_prompts import FixedPrompts
from ...session.non_finite import NonFiniteGuard
from ...session.optimizers import make_optimizer, warmup_steps
from ...session.policy_view import BaseView
from ...session.reference import check_reference
from ...session.sampling import prompts_at_once
from ...session.token_budget import TokenBudget
from ...types import Batch
from .check_sampler import check_sampler
from .collapse import CollapseGuard
from .evaluate import Evaluator
from .forwards import RoleForwards, RoleNeeds
from .rewards import Rewards
from .update import Updater

log = logging.getLogger("rlhf_peft")


@dataclass
class Parts:
    """The parts of one RL stage, and how far it has come.

    Attributes:
        stage: part of the recipe.
        ctx: the run.
        algorithm: says what to sample, what to train on, and the loss.
        sampler: writes the completions.
        rewards: give the scores.
        prompts: deals the prompts.
        view: the policy, as the sampler sees it.
        forwards: run the roles.
        needs: what is computed of every batch before its update.
        updater: takes optimizer steps.
        scheduler: of the learning rate.
        evaluator: answers the held-out prompts; None: there are none.
        fixed_prompts: answers those of `eval.prompts`.
        collapse: warns of a policy that has collapsed, or stops the run.
        roles: that are trained.
        steps: of the stage.
        sampling_budget: of prompts that are answered at once.
        step: the present one.
        tokens: sampled and read so far, prompts included.
        on_phase: is called as a phase of a step ends; see `record.Clock`.
    """

    stage: RlStage
    ctx: Context
    algorithm: Algorithm
    sampler: Sampler
    rewards: Rewards
    prompts: PromptStream
    view: BaseView
    forwards: RoleForwards
    needs: RoleNeeds
    updater: Updater
    scheduler: Any
    evaluator: Evaluator | None
    fixed_prompts: FixedPrompts
    collapse: CollapseGuard
    roles: list[str]
    steps: int
    sampling_budget: TokenBudget
    step: int = 0
    tokens: int = 0
    on_phase: Callable[[str], None] = field(default=lambda phase: None)

    @property
    def prompts_per_step(self) -> int:
        """Prompts of a step's first round."""
        return min(self.stage.prompts_per_step, len(self.prompts.prompts))

    def seed(self, *stream: str | int) -> int:
        """A seed of its own for each named stream of this stage."""
        return self.ctx.seed(self.stage.name, *stream)

    def share(self, batch: Batch) -> Batch:
        """The rows of all processes, in the order of their groups; only a process's own rows have `value_hidden`."""
        ranks = self.ctx.ranks
        if ranks.world == 1:
            return batch
        hidden, batch.value_hidden = batch.value_hidden, None
        batch = Batch.cat(ranks.gather(batch), groups="keep")
        if hidden is not None:
            own = iter(hidden)
            batch.value_hidden = [
                next(own) if owner == ranks.rank else torch.empty(0) for owner in batch.owner.tolist()
            ]
        return batch.rows(batch.rollout.group.argsort(stable=True).tolist())


def build(stage: RlStage, ctx: Context, stack: ExitStack) -> Parts:
    """Make the parts; the model is in train mode from here on.

    Args:
        stage: part of the recipe.
        ctx: the run; its base has a frozen reference.
        stack: at its end, however it comes, what was opened is closed, and the model is as before.

    Raises:
        UsageError: algorithm, sampler and roles do not go together.
        GuardError: policy and reference differ before the first update.
    """
    base, registry = ctx.base, ctx.registry
    algorithm: Algorithm = registry.make("algorithms", stage.algorithm.name, stage.algorithm.options)
    sampler: Sampler = _opened(registry.make("samplers", stage.sampler.name, stage.sampler.options), stack)
    check_sampler(stage, algorithm, sampler)
    rewards = _opened(Rewards(registry, stage.rewards, base, stage=stage.name), stack)
    roles = [POLICY, *_add_value_role(stage, algorithm, base)]
    view, budget = BaseView(base), TokenBudget(stage.name, ctx.recipe.model.tokens_per_forward)
    forwards = RoleForwards(base, algorithm.value, sampler.params.temperature, budget)
    prompts, held_out = _prompts(stage, ctx, sampler.params.max_new_tokens)
    evaluator = _evaluator(stage, ctx, held_out, sampler, forwards, view, stack)
    stream = PromptStream(prompts, ctx.seed(stage.name, "data"))
    epochs = stage.num_train_epochs * max(1, len(prompts) // stage.prompts_per_step)
    steps = stage.max_steps or max(1, int(epochs))
    fixed = FixedPrompts(stage, ctx, sampler.inner if isinstance(sampler, WrappingSampler) else sampler)
    stack.enter_context(base.without_dropout())
    parameters = stack.enter_context(base.training(roles))
    check_reference(base, [prompt.ids.tolist() for prompt in prompts[:8]])
    optimizer, scheduler = _optimizer(stage, base, roles, steps)
    updater = _updater(stage, ctx, forwards, algorithm, optimizer, parameters)
    return Parts(
        stage=stage,
        ctx=ctx,
        algorithm=algorithm,
        sampler=sampler,
        rewards=rewards,
        prompts=stream,
        view=view,
        forwards=forwards,
        needs=role_needs(algorithm, rewards),
        updater=updater,
        scheduler=scheduler,
        evaluator=evaluator,
        fixed_prompts=fixed,
        collapse=CollapseGuard(stage),
        roles=roles,
        steps=steps,
        sampling_budget=prompts_at_once(stage.name),
    )


def _updater(
    stage: RlStage,
    ctx: Context,
    forwards: RoleForwards,
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
) -> Updater:
    """Makes the updates; all processes begin with the same parameters."""
    ctx.ranks.same(parameters)
    return Updater(
        forwards,
        algorithm,
        ctx.ranks,
        optimizer,
        parameters,
        guard=NonFiniteGuard(stage.name, stage.max_bad_steps),
        budget=TokenBudget(stage.name, ctx.recipe.model.tokens_per_forward),
        max_grad_norm=stage.max_grad_norm,
        importance_cap=stage.importance_cap,
    )


def role_needs(algorithm: Algorithm, rewards: Rewards) -> RoleNeeds:
    """What is computed of every batch before its update."""
    return RoleNeeds(
        policy=needs_old_logps(algorithm),
        reference="reference" in algorithm.roles,
        values="value" in algorithm.roles and algorithm.value is not None,
        heads=rewards.heads,
        role_logps=rewards.logp_roles,
    )


def needs_old_logps(algorithm: Algorithm) -> bool:
    """Whether the policy must be run over a rollout before the update.

    Where one update is all that is made of a rollout, and nobody asks for its log-probabilities before, the update's
    own forward gives them: it is the same policy.
    """
    return (
        "old_logps" in algorithm.needs
        or algorithm.epochs * algorithm.minibatches > 1
        or algorithm.value == "policy"
    )


def load_roles(stage: RlStage, base: SharedBase) -> None:
    """Load what the stage's `init` names."""
    for role, reference in stage.init.items():
        if role == "reward":
            base.roles.load_ensemble(role, reference)
        else:
            base.roles.load(role, reference, head=role != "policy")


class _Closing(Protocol):
    def close(self) -> None: ...


def _opened(part: Any, stack: ExitStack) -> Any:
    """The part, which is closed at the end of the stack; that this failed changes nothing about how a stage ends."""

    def close(part: _Closing) -> None:
        try:
            part.close()
        except Exception as error:
            log.warning("%s could not be closed: %s", type(part).__name__, error)

    stack.callback(close, part)
    return part


def _add_value_role(stage: RlStage, algorithm: Algorithm, base: SharedBase) -> list[str]:
    """The value role on the trunk that the algorithm asks for; it begins as the reward model where there is one."""
    trunk = algorithm.value
    if trunk is None or "value" in stage.init:
        return [] if trunk is None else [VALUE]
    first = next((role for role in base.roles.names if role.startswith("reward")), None)
    if trunk == "reward" and first is None:
        raise UsageError(
            f"stages.{stage.name}.algorithm.value: `reward` stands on a reward model and there is none. "
            "Use `own` or `policy`, or train a reward model first."
        )
    if trunk == "own":
        base.roles.add(VALUE, like=first or POLICY, head=True)
    else:
        on = POLICY if trunk == "policy" else first
        base.roles.add(VALUE, like=first if trunk == "reward" else None, trunk=on, head=True)
    return [VALUE]


def _prompts(
    stage: RlStage, ctx: Context, max_new_tokens: int
) -> tuple[Sequence[Prompt], Sequence[Prompt] | None]:
    """Prompts to train on, and those that are held out; None: the recipe holds out none."""
    rows, held_out = ctx.train_and_held_out(stage)
    encoder = ctx.encoder(stage.dataset)

    def encode(dataset: Any, source: str) -> Sequence[Prompt]:
        require(dataset, "rl", source, stage=stage.name)
        return encode_prompts(
            dataset,
            encoder,
            max_new_tokens=max_new_tokens,
            on_bad_row=stage.dataset.on_bad_row,
            on_long_row=stage.dataset.on_long_row,
            source=source,
            stage=stage.name,
        )

    prompts = encode(rows, stage.dataset.path or str(stage.dataset.name))
    if held_out is None:
        return prompts, None
    source = stage.eval.dataset or stage.dataset
    return prompts, encode(held_out, source.path or str(source.name))[: stage.eval.size]


def _evaluator(
    stage: RlStage,
    ctx: Context,
    held_out: Sequence[Prompt] | None,
    sampler: Sampler,
    forwards: RoleForwards,
    view: BaseView,
    stack: ExitStack,
) -> Evaluator | None:
    if held_out is None:
        return None
    rewards = _opened(
        Rewards(ctx.registry, stage.rewards, ctx.base, stage=stage.name, measured=stage.eval.rewards), stack
    )

    def seed(*stream: str | int) -> int:
        return ctx.seed(stage.name, *stream)

    return Evaluator(held_out, sampler, prompts_at_once(stage.name), rewards, forwards, view, seed)


def _optimizer(
    stage: RlStage, base: SharedBase, roles: list[str], steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Optimizer and learning-rate schedule; the value role has its own rate."""
    value: list[nn.Parameter] = [p for role in roles if role != POLICY for p in base.roles.parameters(role)]
    groups = [
        {"params": base.roles.parameters(POLICY), "lr": stage.learning_rate},
        {"params": value, "lr": stage.value_learning_rate or stage.learning_rate},
    ]
    optimizer = make_optimizer(stage, [group for group in groups if group["params"]])
    scheduler = get_scheduler(
        stage.lr_scheduler if stage.lr_scheduler != "constant" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=warmup_steps(stage.warmup, steps),
        num_training_steps=steps,
    )
    return optimizer, scheduler
