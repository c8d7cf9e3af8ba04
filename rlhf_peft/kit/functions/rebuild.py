"""Runs a whole reward in a worker process, where it is made from its options, and each batch is rebuilt from JSON.

A batch lacks what is no JSON: `rollout.sampler_logps`, `heads` and `logps` (a reward with roles never runs there). Its
generator is seeded by a number drawn from the run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...types import RewardBatch, Rollout
from .reward import scores_of


def plain(batch: RewardBatch) -> dict[str, Any]:
    """A batch as plain data for JSON."""
    rollout = batch.rollout
    return {
        "prompts": batch.prompts,
        "completions": batch.completions,
        "completion_ids": batch.completion_ids,
        "finish": list(batch.finish),
        "columns": batch.columns,
        "step": batch.step,
        "updates": batch.updates,
        "seed": batch.generator.initial_seed(),
        "input_ids": [ids.tolist() for ids in rollout.input_ids],
        "action_mask": [mask.int().tolist() for mask in rollout.action_mask],
        "group": rollout.group.tolist(),
        "tag": rollout.tag,
        "version": rollout.version,
    }


def rebuilt(message: Mapping[str, Any]) -> RewardBatch:
    """The batch that `plain` wrote."""
    rollout = Rollout(
        input_ids=[torch.tensor(ids, dtype=torch.int64) for ids in message["input_ids"]],
        action_mask=[torch.tensor(mask, dtype=torch.bool) for mask in message["action_mask"]],
        finish=message["finish"],
        group=torch.tensor(message["group"], dtype=torch.int64),
        tag=message["tag"],
        columns=message["columns"],
        version=message["version"],
    )
    same = ("prompts", "completions", "completion_ids", "finish", "columns", "step", "updates")
    generator = torch.Generator().manual_seed(message["seed"])
    return RewardBatch(
        **{name: message[name] for name in same}, rollout=rollout, heads={}, generator=generator
    )


def server(factory: Any, options: Mapping[str, Any]) -> Any:
    """Make the reward in the worker process; returns a function from a plain batch to plain scores."""
    reward = factory(factory.Options.model_validate(options))

    def serve(message: Mapping[str, Any]) -> dict[str, Any]:
        scores = scores_of(reward.score(rebuilt(message)), len(message["completions"]))
        token = None if scores.token is None else scores.token.tolist()
        return {
            "row": scores.row.tolist(),
            "token": token,
            "metrics": {name: float(value) for name, value in scores.metrics.items()},
            "extra": {name: list(values) for name, values in scores.extra.items()},
        }

    return serve
