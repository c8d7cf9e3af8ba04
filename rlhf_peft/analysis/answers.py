"""The answers of a run to the prompts it was evaluated on: before and after, with what they scored."""

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
    """One prompt and what was written for it.

    Attributes:
        run: name of the run.
        prompt: as text.
        before: of the reference, or of the policy before the stage; None: there is none.
        after: of the policy at the end.
        score_before: its score; None: unknown.
        score: of `after`.
        rewards: name to score of `after`.
        kl: of `after`, in nats.
        words: of `after`.
        repeats: share of pairs of adjacent words in `after` that were there before.
        finish: how it ended.
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
        """As JSON holds it."""
        return {key: _finite(value) for key, value in asdict(self).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return value


def answers(run: History, stage: str) -> list[Answer]:
    """The held-out answers of a stage's last evaluation, each beside that of its first; else what was sampled last."""
    rows = [row for row in run.samples if row.get("stage") == stage and "completion" in row]
    held = [row for row in rows if row.get("split") in ("eval", "prompts")]
    if held:
        return _paired(run.name, held)
    last = max((row["step"] for row in rows), default=0)
    return [_answer(run.name, None, row) for row in rows if row["step"] > last - 10]


def _paired(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    first: dict[tuple[str, int], Mapping[str, Any]] = {}
    last: dict[tuple[str, int], Mapping[str, Any]] = {}
    asked: Counter[tuple[int, str]] = Counter()
    for row in rows:
        # A prompt may be there more than once; its n-th answer is compared with its n-th.
        prompt = text(row["prompt"])
        key = (prompt, asked[row["step"], prompt])
        asked[row["step"], prompt] += 1
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
    """Of a sample; of one without, the sum of its rewards."""
    if row.get("score") is not None:
        return float(row["score"])
    given = [value for value in row.get("rewards", {}).values() if value is not None]
    return sum(given) if given else None


def text(prompt: Any) -> str:
    """A prompt as text: messages one after the other."""
    if isinstance(prompt, str):
        return prompt
    said = [f"{m.get('role', '')}: {m.get('content') or ''}" for m in prompt]
    return str(prompt[0].get("content") or "") if len(prompt) == 1 else "\n".join(said)


def repeats(words: Sequence[str]) -> float:
    """1 - different pairs of adjacent words / pairs."""
    pairs = list(pairwise(words))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0
