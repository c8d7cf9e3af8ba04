"""What is written of a step and of an evaluation, beside their metrics: samples, changes, seconds of each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ... import maths
from ...types import Batch

if TYPE_CHECKING:
    from .evaluate import Answers

SAMPLES_PER_STEP = 4


def outcome(last: dict[str, float], before: Answers | None, after: Answers | None) -> dict[str, Any]:
    """What the stage returns: its last metrics, and the held-out answers side by side."""
    out: dict[str, Any] = {
        "metrics": {key: value for key, value in last.items() if not key.startswith("eval/")}
    }
    if before is not None and after is not None:
        out |= {"before": before.metrics, "after": after.metrics, "differences": differences(before, after)}
        components = after.batch.components
        out["samples"] = [
            {
                "prompt": prompt,
                "before": first,
                "after": second,
                "scores": {
                    name: (float(before.batch.components[name][i]), float(components[name][i]))
                    for name in components
                },
            }
            for i, (prompt, first, second) in enumerate(
                zip(after.batch.rollout.columns["prompt"], before.texts, after.texts, strict=True)
            )
        ]
    return out


def differences(before: Answers, after: Answers) -> dict[str, dict[str, float]]:
    """How much each held-out metric has changed, with the 95 % interval of the mean change.

    Both evaluations answer the same prompts with the same seeds, so the change is taken prompt by prompt, and the
    interval is the percentile bootstrap over prompts (see `maths.bootstrap_interval`).

    Args:
        before: of N prompts.
        after: of the same.

    Returns:
        By the name of the metric: `mean`, `low`, `high`, and `n`, the prompts that both have a value for.
    """
    first, second = before.batch, after.batch
    pairs = {"eval/reward": (first.scores, second.scores)}
    for name, values in second.components.items():
        pairs[f"eval/rewards/{name}/mean"] = first.components[name], values
    lengths = (first.rollout.completion_lengths, second.rollout.completion_lengths)
    pairs["eval/completions/mean_length"] = lengths[0].float(), lengths[1].float()
    ended = [torch.tensor([float(how != "length") for how in b.rollout.finish]) for b in (first, second)]
    pairs["eval/completions/eos_rate"] = ended[0], ended[1]
    changes = {}
    for name, (old, new) in pairs.items():
        change = (new - old).double().cpu()
        change = change[~change.isnan()]
        if len(change):
            low, high = maths.bootstrap_interval(change, torch.Generator().manual_seed(0))
            changes[name] = {"mean": float(change.mean()), "low": low, "high": high, "n": float(len(change))}
    return changes


def samples(
    stage: str, step: int, batch: Batch, decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """The first completions of a step, with what they scored."""
    rollout, kl = batch.rollout, row_kl(batch)
    return [
        {
            "stage": stage,
            "step": step,
            "prompt": rollout.columns["prompt"][i],
            "completion": decode(rollout.completion_ids(i)),
            "score": float(batch.scores[i]),
            "rewards": {name: float(values[i]) for name, values in batch.components.items()},
            "kl": kl[i],
            "finish": rollout.finish[i],
            **({"extra": {name: values[i] for name, values in batch.extra.items()}} if batch.extra else {}),
        }
        for i in range(min(SAMPLES_PER_STEP, len(rollout)))
    ]


def held_out_samples(stage: str, step: int, answers: Answers) -> list[dict[str, Any]]:
    """All answers of an evaluation, with what they scored."""
    batch, kl = answers.batch, row_kl(answers.batch)
    return [
        {
            "stage": stage,
            "step": step,
            "split": "eval",
            "prompt": prompt,
            "completion": text,
            "score": float(batch.scores[i]),
            "rewards": {name: float(v[i]) for name, v in batch.components.items()},
            "kl": kl[i],
            "finish": batch.rollout.finish[i],
        }
        for i, (prompt, text) in enumerate(zip(batch.rollout.columns["prompt"], answers.texts, strict=True))
    ]


def row_kl(batch: Batch) -> list[float]:
    """The KL of each completion, k1, in nats; NaN where it was not computed."""
    if batch.old_logps is None or batch.ref_logps is None:
        return [float("nan")] * len(batch)
    out: list[float] = maths.masked_sum(batch.old_logps - batch.ref_logps, batch.mask, dim=-1).tolist()
    return out


class Clock:
    """Seconds of each phase of a step.

    Args:
        on_phase: is called with the name of each phase as it ends, and with "" as the clock starts.
    """

    def __init__(self, on_phase: Callable[[str], None] = lambda phase: None) -> None:
        self._on_phase, self._phases = on_phase, dict[str, float]()
        on_phase("")
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Say which phase ends now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._on_phase(phase)
        self._last = now

    def metrics(self, batch: Batch, epochs: int) -> dict[str, float]:
        """Seconds and tokens per second."""
        lengths = batch.rollout.lengths
        tokens = {
            "rollout": int(batch.rollout.completion_lengths.sum()),
            "scoring": int(lengths.sum()),
            "update": int(lengths[batch.train].sum()) * epochs,
        }
        out = {"step_time": sum(self._phases.values())}
        for phase, seconds in self._phases.items():
            out[f"time/{phase}"] = seconds
            out[f"tokens_per_second/{phase}"] = tokens[phase] / max(seconds, 1e-9)
        return out
