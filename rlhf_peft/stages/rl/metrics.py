"""Every metric that the RL stage writes, with its formula; algorithms and rewards add their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ... import maths
from ...hookspecs.metrics import without_formula
from ...kit.policy_gradient import BASELINE
from ...session.ranks import Ranks
from ...types import Batch, Rollout

METRICS: dict[str, str] = {
    "reward": "mean over rows of the score: weighted sum of the rewards, after the rule for missing EOS",
    "reward_std": "standard deviation of the score over rows",
    "rewards/<name>/mean": "mean over rows of one reward, unweighted, rows that abstained left out",
    "rewards/<name>/std": "standard deviation of one reward over rows",
    "rewards/<name>/abstained": "share of rows that a reward abstained from; only where there is one",
    "rewards/<name>/failed": "1 where a reward failed in this batch and its entry says abstain",
    "kl": "mean over completions of sum over tokens of logp - ref_logp (k1), in nats: the objective's KL",
    "kl_k3": "mean over completions of sum over tokens of exp(-d) - 1 + d, d = logp - ref_logp (k3), in nats",
    "approx_kl": "mean over tokens and updates of 0.5 (logp - old_logp)^2 (k2): how far an update moves",
    "entropy": "mean over tokens of the entropy of the policy's distribution at the rollout, in nats",
    "clip_ratio/region_mean": "share of tokens whose gradient the policy clip silences",
    "ratio/min": "smallest exp(logp - old_logp) of a token in all updates of the step",
    "ratio/mean": "mean over tokens and updates of exp(logp - old_logp)",
    "ratio/max": "largest exp(logp - old_logp) of a token in all updates of the step",
    "loss": "mean over updates of the loss",
    "completions/mean_length": "mean tokens of a completion, EOS included",
    "completions/min_length": "fewest tokens of a completion",
    "completions/max_length": "most tokens of a completion",
    "completions/clipped_ratio": "share of completions that did not end by EOS or a stop string",
    "completions/eos_rate": "share of completions that ended by EOS",
    "frac_reward_zero_std": "share of groups of two or more rows whose scores are all equal",
    "grad_norm": "mean over updates of the norm of the gradient before clipping",
    "updates/skipped": "share of the step's updates that were skipped because loss or gradient were not finite",
    "loss_scale": "factor on the loss after the step, only where the base computes in float16",
    "learning_rate": "of the policy, in this step",
    "sampling/sampling_logp_difference/mean": "mean over tokens of |logp - sampler's logp|",
    "sampling/sampling_logp_difference/max": "largest |logp - sampler's logp| of a token",
    "sampling/importance_sampling_ratio/mean": "mean over tokens of min(exp(logp - sampler's logp), importance_cap)",
    "distinct_2": "different pairs of adjacent tokens over all pairs, over all completions (evaluation only)",
    "num_tokens": "tokens sampled and read so far, prompts included",
    "rows": "rows that the step trained on",
    "sampling/rounds": "how often prompts were sampled in the step (more than 1 with dynamic sampling)",
    "step_time": "seconds of the step",
    "time/rollout": "seconds of sampling",
    "time/scoring": "seconds of the roles' forwards and the rewards",
    "time/update": "seconds of the updates",
    "tokens_per_second/rollout": "completion tokens per second of sampling",
    "tokens_per_second/scoring": "tokens per second of scoring",
    "tokens_per_second/update": "tokens per second of updating, all epochs counted",
}


def describe(batch: Batch, importance_cap: float | None) -> dict[str, float]:
    """Metrics of a step's rewards, of its completions, and of the policy that wrote them.

    Those of the policy are over the rows that it was run on. Rows that are only compared with (`BASELINE`) are left
    out: they are no samples of the policy.

    Args:
        batch: after the update.
        importance_cap: of the weight between trainer and sampler, or None.
    """
    batch = batch.rows([i for i, tag in enumerate(batch.rollout.tag) if tag != BASELINE])
    out = describe_scores(batch) | describe_rollout(batch.rollout)
    if batch.old_logps is None or batch.entropy is None:
        return out
    computed = (~batch.old_logps.isnan().any(-1)).nonzero().flatten().tolist()
    if not computed:
        return out
    known = batch.rows(computed)
    assert known.old_logps is not None and known.entropy is not None
    if known.ref_logps is not None:
        out |= describe_kl(known.old_logps, known.ref_logps, known.mask)
    out["entropy"] = float(maths.masked_mean(known.entropy, known.mask))
    return out | describe_sampler(known.old_logps, known.sampler_logps, known.mask, importance_cap)


def describe_scores(batch: Batch) -> dict[str, float]:
    """Metrics of the rewards."""
    scores = batch.scores[~batch.scores.isnan()]
    out = {"reward": _mean(scores), "reward_std": _std(scores)}
    for name, values in batch.components.items():
        given = values[~values.isnan()]
        out[f"rewards/{name}/mean"], out[f"rewards/{name}/std"] = _mean(given), _std(given)
    groups = [batch.scores[batch.rollout.group == g] for g in batch.rollout.group.unique()]
    several = [group for group in groups if len(group) > 1]
    out["frac_reward_zero_std"] = _mean(torch.tensor([float(bool((g == g[0]).all())) for g in several]))
    return out


def describe_rollout(rollout: Rollout) -> dict[str, float]:
    """Metrics of the completions."""
    lengths = rollout.completion_lengths.float()
    ended = torch.tensor([float(word != "length") for word in rollout.finish])
    eos = torch.tensor([float(word == "eos") for word in rollout.finish])
    return {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1.0 - _mean(ended),
        "completions/eos_rate": _mean(eos),
    }


def describe_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> dict[str, float]:
    """The KL to the reference, a completion."""
    k1 = maths.masked_sum(maths.kl_estimate(logps, ref_logps, "k1"), mask, dim=-1)
    k3 = maths.masked_sum(maths.kl_estimate(logps, ref_logps, "k3"), mask, dim=-1)
    return {"kl": float(k1.mean()), "kl_k3": float(k3.mean())}


def describe_sampler(
    logps: Tensor, sampler_logps: Tensor | None, mask: Tensor, importance_cap: float | None
) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's, and the mean weight that follows."""
    if sampler_logps is None:
        return {}
    difference = (logps - sampler_logps).abs()[mask]
    out = {
        "sampling/sampling_logp_difference/mean": float(difference.mean()),
        "sampling/sampling_logp_difference/max": float(difference.max()),
    }
    if importance_cap is not None:
        weights = maths.truncated_importance(logps, sampler_logps, importance_cap)
        out["sampling/importance_sampling_ratio/mean"] = float(maths.masked_mean(weights, mask))
    return out


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _std(values: Tensor) -> float:
    """0 where all are equal, whatever their mean is rounded to."""
    return float(values.std()) if len(values) > 1 and bool(values.max() > values.min()) else 0.0


class Averages:
    """Sums of metrics over micro-batches, and their means over what they were summed over."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, total: float, count: int = 1) -> None:
        """Take in a metric: its sum over so many tokens or rows."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def take(self, other: Averages) -> None:
        """Take in all of another's metrics."""
        for mine, theirs in ((self._sums, other._sums), (self._counts, other._counts)):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0.0) + value

    def gather(self, ranks: Ranks) -> None:
        """Take in what the other processes have."""
        if ranks.world == 1:
            return
        each = ranks.gather((dict(self._sums), dict(self._counts)))
        for mine, others in ((self._sums, [e[0] for e in each]), (self._counts, [e[1] for e in each])):
            mine.clear()
            for name in dict.fromkeys(name for other in others for name in other):
                mine[name] = sum(other.get(name, 0.0) for other in others)

    def means(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: total / max(1.0, self._counts[name]) for name, total in self._sums.items()}


def reward_metrics(name: str, metrics: Mapping[str, str]) -> dict[str, str]:
    """What a reward logs, under the names that stand in metrics.jsonl.

    Args:
        name: of the reward.
        metrics: name to formula, as the reward declares them.
    """
    return {f"rewards/{name}/{key}": formula for key, formula in metrics.items()}


def undocumented(names: Iterable[str], *documented: Mapping[str, str]) -> list[str]:
    """Names of metrics that no table explains; `eval/x` is x, measured on held-out rows."""
    plain = {name: name.removeprefix("eval/") for name in without_formula(names, METRICS, *documented)}
    missing = set(without_formula(plain.values(), METRICS, *documented))
    return [name for name, rest in plain.items() if rest in missing]
