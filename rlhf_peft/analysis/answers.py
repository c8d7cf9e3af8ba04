"""The answers of a run to its evaluation prompts, before and after training, with their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ..runs import History


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt and the answers to it.

    Attributes:
        run: name of the run.
        prompt: the prompt as text.
        before: answer of the reference, or of the policy before the stage; None: there is none.
        after: answer of the policy at the end.
        score_before: score of `before`; None: unknown.
        score: score of `after`; None: unknown.
        rewards: for each reward's name, the score of `after`.
        kl: KL of `after`, in nats.
        words: number of words of `after`.
        repeats: share of pairs of adjacent words in `after` that occur earlier in it.
        finish: reason why `after` ended.
    """

    run: str
    prompt: str
    before: str | None
    after: str
    score_before: float | None
    score: float | None
    rewards: dict[str, float]
    kl: float | None
    words: int
    repeats: float
    finish: str

    def plain(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        return {key: _finite(value) for key, value in asdict(self).items()}


def _finite(value: Any) -> Any:
    """A value in which numbers that are not finite are replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return value


def answers(run: History, stage: str) -> list[Answer]:
    """The held-out answers of a stage's last evaluation, each with its first; without any, the last samples."""
    rows = [row for row in run.samples if row.get("stage") == stage and "completion" in row]
    held_out = [row for row in rows if row.get("split") in ("eval", "prompts")]
    if held_out:
        return _paired(run.name, held_out)
    last = max((row["step"] for row in rows), default=0)
    return [_answer(run.name, None, row) for row in rows if row["step"] > last - 10]


def _paired(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Pair each prompt's last answer with its first."""
    first: dict[tuple[str, int], Mapping[str, Any]] = {}
    last: dict[tuple[str, int], Mapping[str, Any]] = {}
    seen_at_step: Counter[tuple[int, str]] = Counter()
    for row in rows:
        # A prompt may occur more than once in a step; its n-th answers are compared with each other.
        prompt = text(row["prompt"])
        key = (prompt, seen_at_step[row["step"], prompt])
        seen_at_step[row["step"], prompt] += 1
        first.setdefault(key, row)
        last[key] = row
    return [
        _answer(name, first[key] if first[key]["step"] < row["step"] else None, row)
        for key, row in last.items()
    ]


def _answer(name: str, before: Mapping[str, Any] | None, row: Mapping[str, Any]) -> Answer:
    words = row["completion"].split()
    return Answer(
        run=name,
        prompt=text(row["prompt"]),
        before=None if before is None else before["completion"],
        after=row["completion"],
        score_before=None if before is None else score(before),
        score=score(row),
        rewards=dict(row.get("rewards", {})),
        kl=row.get("kl"),
        words=len(words),
        repeats=repeats(words),
        finish=str(row.get("finish", "")),
    )


def score(row: Mapping[str, Any]) -> float | None:
    """The score of a sample; if it has none, the sum of its rewards."""
    if row.get("score") is not None:
        return float(row["score"])
    scores = [value for value in row.get("rewards", {}).values() if value is not None]
    return sum(scores) if scores else None


def text(prompt: Any) -> str:
    """A prompt as text; messages follow one after the other."""
    if isinstance(prompt, str):
        return prompt
    lines = [f"{m.get('role', '')}: {m.get('content') or ''}" for m in prompt]
    return str(prompt[0].get("content") or "") if len(prompt) == 1 else "\n".join(lines)


def repeats(words: Sequence[str]) -> float:
    """Share of repeated pairs of adjacent words: 1 - distinct pairs / pairs."""
    pairs = list(pairwise(words))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0
