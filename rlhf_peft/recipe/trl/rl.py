"""Makes a stage of kind `rl` from the keys of TRL's GRPO and RLOO trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from .config import REWARDS
from .stages import rows, shared

if TYPE_CHECKING:
    from .convert import Reader


def online(read: Reader, trainer: str) -> dict[str, Any]:
    """A stage of kind `rl`: a rollout of so many prompts, then the same updates that TRL makes of it."""
    generations, update, iterations = read.count("num_generations"), rows(read), read.count("num_iterations")
    rollout = _rollout(read)
    if rollout % generations:
        raise UsageError(
            f"num_generations: {generations} does not divide the {rollout} completions of a rollout "
            "(per_device_train_batch_size x steps_per_generation)"
        )
    minibatches = max(1, rollout // update)
    if rollout < update or rollout % update:
        read.note("steps_per_generation", f"an update is made of a whole rollout here: {rollout} completions")
    common = shared(read, trainer, minibatches * iterations)
    algorithm = _grpo(read) if trainer == "grpo" else _rloo(read)
    decoupled = read("multi_objective_aggregation") == "normalize_then_sum"
    if decoupled:
        algorithm["scale_rewards"] = "batch"
        read.note(
            "multi_objective_aggregation",
            "GDPO: each reward has normalize: group, and the sum scale_rewards: batch",
        )
    algorithm |= {
        "num_generations": generations,
        "num_epochs": iterations,
        "num_minibatches": minibatches,
        "mask_truncated_completions": bool(read("mask_truncated_completions")),
    }
    return {
        "stage": "rl",
        **common,
        **_importance(read),
        **missing_eos(read),
        "algorithm": algorithm,
        "sampler": sampler(read),
        "rewards": [{**entry, "normalize": "group"} if decoupled else entry for entry in rewards(read)],
        "prompts_per_step": rollout // generations,
    }


def _rollout(read: Reader) -> int:
    """Number of completions of one generation."""
    if read("generation_batch_size") is not None:
        read("steps_per_generation")
        return read.count("generation_batch_size")
    has_steps = read("steps_per_generation") is not None
    steps = read.count("steps_per_generation" if has_steps else "gradient_accumulation_steps")
    return read.count("per_device_train_batch_size") * steps


def _importance(read: Reader) -> dict[str, Any]:
    """The cap of the importance weight between trainer and sampler, if the file sets it."""
    correct, mode = read("vllm_importance_sampling_correction"), read("vllm_importance_sampling_mode")
    cap = read.number("vllm_importance_sampling_clip_max")
    if mode not in (None, "token_truncate"):
        read.note("vllm_importance_sampling_mode", f"{mode} is not here: weights of tokens, truncated")
    if correct is False:
        return {"importance_cap": None}
    return {} if cap is None else {"importance_cap": cap}


def missing_eos(read: Reader) -> dict[str, Any]:
    """The key `missing_eos_penalty`, if the file has it."""
    penalty = read.number("missing_eos_penalty")
    return {} if penalty is None else {"missing_eos_penalty": penalty}


def sampler(read: Reader, length: str = "max_completion_length", *, ratios: bool = True) -> dict[str, Any]:
    """The `sampler` section.

    Args:
        read: the configuration.
        length: TRL's key for the most tokens of a completion.
        ratios: whether the algorithm uses probability ratios, which need samples from the whole distribution.
    """
    section: dict[str, Any] = {"name": "cached", "max_new_tokens": read.count(length)}
    section["temperature"] = read.number("temperature")
    cut = {"top_p": read.number("top_p"), "top_k": read.number("top_k"), "min_p": read.number("min_p")}
    if not ratios:
        section |= {key: value for key, value in cut.items() if value != {"top_p": 1.0}.get(key, 0)}
    elif cut["top_p"] < 1 or cut["top_k"] > 0 or cut["min_p"] > 0:
        read.note("top_p", "with top_k and min_p left out: ratios need draws from the whole distribution")
    if read.number("repetition_penalty", 1.0) != 1.0:
        read.note("repetition_penalty", "left out: it would draw from another distribution than is trained")
    return section


def _grpo(read: Reader) -> dict[str, Any]:
    """The `algorithm` section of GRPO and its variants."""
    loss = str(read("loss_type"))
    level = read("importance_sampling_level") or "token"
    scale = read("scale_rewards")
    names = {"true": "group", "false": "none"}
    section: dict[str, Any] = {"name": "grpo", "loss_type": loss}
    if loss == "cispo":
        section = {"name": "cispo"}
    elif loss not in ("grpo", "dr_grpo", "dapo", "bnpo"):
        section["loss_type"] = "dapo"
        read.note("loss_type", f"{loss} is not here: the recipe uses dapo, which is another method")
    if str(level).startswith("sequence"):
        section = {"name": "gspo"}
        if loss != "grpo":
            read.note("loss_type", f"{loss}: with ratios of sequences the loss is the mean over rows (gspo)")
    section |= {"scale_rewards": names.get(str(scale).lower(), scale), "beta": read.number("beta")}
    section |= _kl_estimator(read, section["beta"])
    section |= {"epsilon": read.number("epsilon"), "entropy_coef": read.number("entropy_coef")}
    high = read.number("epsilon_high")
    if high is None and section["name"] == "cispo":
        high = section["epsilon"]
    if high is not None or section["name"] == "gspo":
        section["epsilon_high"] = high
    return section


def _kl_estimator(read: Reader, beta: float) -> dict[str, Any]:
    """The estimator of TRL's KL term: k3, times the ratio if the bias is corrected.

    With r = pi / pi_old and d = log ref - log pi, grad [r k3] = (1 - e^d) + k3 = -d at r = 1, which is grad k2.
    """
    corrected = read("use_bias_correction_kl")
    if not beta:
        return {}
    if not corrected:
        return {"kl_estimator": "k3"}
    read.note(
        "use_bias_correction_kl",
        "kl_estimator: k2, whose gradient is that of TRL's k3 times the ratio while the ratio is 1",
    )
    return {"kl_estimator": "k2"}


def _rloo(read: Reader) -> dict[str, Any]:
    """The `algorithm` section of RLOO."""
    section = {"name": "rloo", "beta": read.number("beta"), "epsilon": read.number("epsilon")}
    high = read.number("epsilon_high")
    if high is not None:
        section["epsilon_high"] = high
    section["normalize_advantages"] = bool(read("normalize_advantages"))
    return section


def rewards(read: Reader) -> list[dict[str, Any]]:
    """The `rewards` section: built-in rewards by our name, the user's functions by theirs (given with --reward)."""
    model = read("reward_model_name_or_path")
    names = [*([model] if model else []), *read.list("reward_funcs")]
    if not names:
        read.note("reward_funcs", "missing: the recipe names `reward`; give it: --reward FILE.py:reward")
        names = ["reward"]
    weights = read.list("reward_weights") or [1.0] * len(names)
    if len(weights) != len(names):
        raise UsageError(f"reward_weights: {len(weights)} for {len(names)} rewards. Give one for each.")
    clip = read.list("reward_clip_range")
    entries = [
        {**_reward(read, str(name)), "weight": weight} for name, weight in zip(names, weights, strict=True)
    ]
    return [{**entry, "clip": clip} for entry in entries] if clip else entries


def _reward(read: Reader, name: str) -> dict[str, Any]:
    """The entry of one reward."""
    if name in REWARDS:
        entry = dict(REWARDS[name])
        read.note(f"reward_funcs.{name}", f"here: {entry['name']}")
        return entry
    if "/" in name:
        read.note(name, "a model of its own beside the base; one trained on the base takes far less memory")
        return {"name": "classifier", "model": name}
    module, _, function = name.rpartition(".")
    file = f"{module.replace('.', '/')}.py" if module else "FILE.py"
    read.note(f"reward_funcs.{name}", f"a function of yours: --reward {file}:{function}")
    return {"name": function}
