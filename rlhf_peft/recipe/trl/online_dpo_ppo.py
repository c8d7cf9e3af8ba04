"""Makes a stage of kind `rl` from the keys of TRL's online DPO and PPO trainers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .rl import missing_eos, rewards, sampler
from .stages import rows, shared

if TYPE_CHECKING:
    from .convert import Reader


def online_dpo(read: Reader, trainer: str) -> dict[str, Any]:
    """A stage with the algorithm `online_dpo`: two completions of each prompt make a pair.

    Args:
        read: the configuration.
        trainer: name of the trainer.
    """
    beta, loss = read("beta"), str(read("loss_type"))
    if isinstance(beta, list) and beta:
        if len(beta) > 1:
            read.note("beta", f"one for each epoch is not here: {beta[0]} for all of them")
        beta = beta[0]
    if loss not in ("sigmoid", "ipo"):
        read.note("loss_type", f"{loss} is not here: sigmoid, which is another method")
        loss = "sigmoid"
    read.note("max_length", "longer prompts are skipped (on_bad_row), not cut")
    return {
        "stage": "rl",
        **shared(read, trainer),
        **missing_eos(read),
        "algorithm": {
            "name": "online_dpo",
            "num_generations": 2,
            "beta": 0.1 if beta is None else beta,
            "loss_type": loss,
        },
        "sampler": sampler(read, "max_new_tokens", ratios=False),
        "rewards": rewards(read),
        "prompts_per_step": rows(read),
    }


def ppo(read: Reader, trainer: str) -> dict[str, Any]:
    """A stage with the algorithm `ppo`: one completion of each prompt, and a value role with its own adapter.

    Args:
        read: the configuration.
        trainer: name of the trainer.
    """
    minibatches = read.count("num_mini_batches")
    rollout = rows(read) * minibatches
    section = {"stage": "rl", **shared(read, trainer), **missing_eos(read)}
    section.pop("max_steps", None)
    episodes = read.number("total_episodes")
    if read.number("max_steps", -1) > 0:
        read.note("max_steps", "left out: TRL's PPO does not read it")
    if episodes is not None:
        section["max_steps"] = max(1, math.ceil(episodes / rollout))
    estimator = str(read("kl_estimator"))
    if estimator == "k3":
        read.note(
            "kl_estimator", "k3 in the reward, as in TRL, does not follow the gradient of the KL; k1 does"
        )
    section["algorithm"] = {
        "name": "ppo",
        "num_generations": 1,
        "num_epochs": read.count("num_iterations"),
        "num_minibatches": minibatches,
        "beta": read.number("beta"),
        "kl_estimator": estimator,
        "kl_placement": "reward",
        "epsilon": read.number("epsilon"),
        "vf_coef": read.number("vf_coef"),
        "cliprange_value": read.number("cliprange_value"),
        "gamma": read.number("gamma"),
        "lam": read.number("lam"),
        "whiten_rewards": bool(read("whiten_rewards")),
    }
    return section | {
        "sampler": sampler(read),
        "rewards": rewards(read),
        "prompts_per_step": rollout,
    }
