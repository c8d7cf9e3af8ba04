"""What the RL stage writes down beside its losses: samples, figures of a rollout, seconds of each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import maths
from ...kit.policy_gradient import BASELINE
from ...types import Rollout, Scored
from .metrics import describe_kl, describe_rollout, describe_sampler
from .rewards.rewards import Scoring

if TYPE_CHECKING:
    from .evaluate import Answers

SAMPLES_PER_STEP = 4


def outcome(last: dict[str, float], before: Answers | None, after: Answers | None) -> dict[str, Any]:
    """What the stage returns: its last figures, and the held-out answers side by side."""
    out: dict[str, Any] = {
        "metrics": {key: value for key, value in last.items() if not key.startswith("eval/")}
    }
    if before is not None and after is not None:
        out |= {"before": before.metrics, "after": after.metrics, "differences": differences(before, after)}
        out["samples"] = [
            {
                "prompt": prompt,
                "before": first,
                "after": second,
                "scores": {
                    name: (
                        float(before.scoring.components[name][i]),
                        float(after.scoring.components[name][i]),
                    )
                    for name in after.scoring.components
                },
            }
            for i, (prompt, first, second) in enumerate(
                zip(after.rollout.columns["prompt"], before.texts, after.texts, strict=True)
            )
        ]
    return out


def differences(before: Answers, after: Answers) -> dict[str, dict[str, float]]:
    """How much each held-out figure has changed, with the 95 % interval of the mean change.

    Both evaluations answer the same prompts with the same seeds, so the change is taken prompt by prompt, and the
    interval is the percentile bootstrap over prompts (see `maths.bootstrap_interval`).

    Args:
        before: of N prompts.
        after: of the same.

    Returns:
        By the name of the figure: `mean`, `low`, `high`, and `n`, the prompts that both have a value for.
    """
    pairs = {"eval/reward": (before.scoring.scores, after.scoring.scores)}
    for name, values in after.scoring.components.items():
        pairs[f"eval/rewards/{name}/mean"] = before.scoring.components[name], values
    lengths = (before.rollout.completion_lengths, after.rollout.completion_lengths)
    pairs["eval/completions/mean_length"] = lengths[0].float(), lengths[1].float()
    ended = [torch.tensor([float(how != "length") for how in a.rollout.finish]) for a in (before, after)]
    pairs["eval/completions/eos_rate"] = ended[0], ended[1]
    found = {}
    for name, (first, second) in pairs.items():
        change = (second - first).double().cpu()
        change = change[~change.isnan()]
        if len(change):
            low, high = maths.bootstrap_interval(change, torch.Generator().manual_seed(0))
            found[name] = {"mean": float(change.mean()), "low": low, "high": high, "n": float(len(change))}
    return found


def sampled_rows(scored: Scored) -> Scored:
    """Without the rows that are only compared with, which are no samples of the policy."""
    index = [i for i, tag in enumerate(scored.rollout.tag) if tag != BASELINE]
    return scored if len(index) == len(scored) else scored.rows(index)


def describe(scored: Scored, seen: Tensor, importance_cap: float | None) -> dict[str, float]:
    """Figures of a rollout and of the policy that wrote it; those of the policy over the rows it was run on.

    Args:
        scored: the rows.
        seen: [N] bool, rows with log-probabilities.
        importance_cap: of the weight between trainer and sampler, or None.
    """
    out = describe_rollout(sampled_rows(scored).rollout)
    told = sampled_rows(scored.rows(seen.nonzero().flatten().tolist()))
    if len(told) == 0 or told.logps is None or told.entropy is None:
        return out
    if told.ref_logps is not None:
        out |= describe_kl(told.logps, told.ref_logps, told.mask)
    out["entropy"] = float(maths.masked_mean(told.entropy, told.mask))
    theirs = padded(told.rollout.sampler_logps, told.mask.shape[1])
    return out | describe_sampler(told.logps, theirs, told.mask, importance_cap)


def padded(rows: Sequence[Tensor] | None, width: int | None = None) -> Tensor | None:
    """[N, T] of ragged rows, as wide as the longest or wider; None stays None."""
    if rows is None:
        return None
    out = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return out if width is None else torch.nn.functional.pad(out, (0, width - out.shape[1]))


def samples(
    stage: str, step: int, scored: Scored, scoring: Scoring, decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """The first completions of a rollout, with what they scored."""
    rollout, kl = scored.rollout, row_kl(scored)
    return [
        {
            "stage": stage,
            "step": step,
            "prompt": rollout.columns["prompt"][i],
            "completion": decode(rollout.completion_ids(i)),
            "score": float(scored.scores[i]),
            "rewards": {name: float(values[i]) for name, values in scoring.components.items()},
            "kl": kl[i],
            "finish": rollout.finish[i],
            **(
                {"extra": {name: values[i] for name, values in scoring.extra.items()}}
                if scoring.extra
                else {}
            ),
        }
        for i in range(min(SAMPLES_PER_STEP, len(rollout)))
    ]


def held_out_samples(stage: str, step: int, answers: Answers) -> list[dict[str, Any]]:
    """All answers of an evaluation, with what they scored."""
    return [
        {
            "stage": stage,
            "step": step,
            "split": "eval",
            "prompt": prompt,
            "completion": text,
            "score": float(answers.scoring.scores[i]),
            "rewards": {name: float(v[i]) for name, v in answers.scoring.components.items()},
            "kl": answers.kl[i],
            "finish": answers.rollout.finish[i],
        }
        for i, (prompt, text) in enumerate(zip(answers.rollout.columns["prompt"], answers.texts, strict=True))
    ]


def row_kl(scored: Scored) -> list[float]:
    """The KL of each completion, k1, in nats; NaN where it was not computed."""
    if scored.logps is None or scored.ref_logps is None:
        return [float("nan")] * len(scored)
    out: list[float] = maths.masked_sum(scored.logps - scored.ref_logps, scored.mask, dim=-1).tolist()
    return out


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The phase that ends now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._laps[phase] = self._laps.get(phase, 0.0) + now - self._last
        self._last = now

    def figures(self, rollout: Rollout, keep: Tensor, epochs: int) -> dict[str, float]:
        """Seconds and tokens per second."""
        written, read = int(rollout.completion_lengths.sum()), int(rollout.lengths.sum())
        trained = int(rollout.lengths[keep].sum()) * epochs
        done = {"rollout": written, "scoring": read, "update": trained}
        out = {"step_time": sum(self._laps.values())}
        for phase, seconds in self._laps.items():
            out[f"time/{phase}"] = seconds
            out[f"tokens_per_second/{phase}"] = done[phase] / max(seconds, 1e-9)
        return out
