"""Where pairs to be judged come from: a file, two answers of a policy, or policy and reference."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import Encoder, columns_of, encode_prompts, load_rows
from ..engine import POLICY, REFERENCE
from ..errors import DataError, UsageError
from ..recipe import DatasetSource, RlStage
from ..registry import Registry
from ..stages import read_source
from ..stages.memory import Budget
from ..stages.rl.forwards import Scorer
from ..stages.sampling import prompts_at_once, sample
from ..stages.view import BaseView
from ..trained import Opened
from ..types import Request
from .store import Pair

NAMES = (("chosen", "rejected"), ("a", "b"), ("completion_a", "completion_b"), ("response_a", "response_b"))
STAGE = "label"


def from_file(path: str, split: str = "train") -> list[Pair]:
    """Pairs of a dataset: `prompt` and two completions, under one of several names.

    Raises:
        DataError: it has no such columns, or cannot be read.
    """
    rows = load_rows(path=path, split=split)
    found = columns_of(rows)
    names = next((pair for pair in NAMES if set(pair) <= set(found)), None)
    if names is None or "prompt" not in found:
        wanted = " or ".join("+".join(("prompt", *pair)) for pair in NAMES)
        raise DataError(f"{path}: found columns {', '.join(found)}. Pairs to label need {wanted}.")
    return [Pair(row["prompt"], _text(row[names[0]]), _text(row[names[1]]), *names) for row in rows]


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def prompts_of(opened: Opened, registry: Registry, dataset: DatasetSource | None, size: int) -> list[Any]:
    """Prompts of a dataset, or of the run's last RL stage.

    Raises:
        UsageError: the run has none, and no dataset is given.
    """
    stage = next((s for s in reversed(opened.recipe.stages) if isinstance(s, RlStage)), None)
    split = None
    if dataset is None:
        if stage is None:
            raise UsageError(f"{opened.path}: has no RL stage that names prompts. Give --prompts.")
        dataset, split = stage.eval.dataset or stage.dataset, stage.eval.split
    name = dataset.path or str(dataset.name)
    rows = read_source(dataset, registry, split, stage=STAGE)
    encoder = Encoder(
        opened.base.tokenizer,
        chat_template_kwargs=dict(opened.recipe.model.chat_template_kwargs),
        system=dataset.system,
        max_length=opened.base.max_length,
    )
    return encode_prompts(rows, encoder, max_new_tokens=1, on_bad_row="skip", source=name, stage=STAGE)[:size]


def _written(
    opened: Opened, registry: Registry, prompts: Sequence[Any], role: str, each: int, seed: int, most: int
) -> tuple[list[list[str]], list[list[dict[str, float]]]]:
    """Of each prompt, so many answers of a role, and what each reward head says of them."""
    sampler = registry.make("samplers", "cached", {"max_new_tokens": most})
    view = BaseView(opened.base, role)
    sampler.sync(view, 0)
    requests = [
        Request(p.ids, i, zlib.crc32(f"{seed}/{role}/{i}/{k}".encode()), sampler.params, columns=p.columns)
        for i, p in enumerate(prompts)
        for k in range(each)
    ]
    rollout = sample(sampler, requests, prompts_at_once(STAGE))
    scorer = Scorer(opened.base, None, 1.0, Budget(STAGE, opened.recipe.model.tokens_per_forward))
    heads = scorer(rollout, logps=False, reference=False, values=False, heads=tuple(opened.rewards)).heads
    sampler.close()
    texts, said = [], []
    for first in range(0, len(requests), each):
        rows = range(first, first + each)
        texts.append([view.decode(rollout.completion_ids(i)) for i in rows])
        said.append([{name: float(values[i]) for name, values in heads.items()} for i in rows])
    return texts, said


def sampled(
    opened: Opened,
    registry: Registry,
    prompts: Sequence[Any],
    *,
    each: int = 4,
    seed: int = 0,
    most: int = 256,
) -> list[Pair]:
    """Of each prompt the two answers on whose order the reward ensemble disagrees most.

    Disagreement about a pair is the standard deviation over the heads of r_1 - r_2 (each head's rewards scaled to
    variance 1): what a judgement would settle. With fewer than two heads, the two answers whose rewards are nearest;
    with none, the first two that differ.
    """
    texts, said = _written(opened, registry, prompts, POLICY, each, seed, most)
    scale = _scales(said)
    found = []
    for prompt, answers, scores in zip(prompts, texts, said, strict=True):
        best: tuple[float, int, int] | None = None
        for i in range(each):
            for j in range(i + 1, each):
                if answers[i].strip() == answers[j].strip():
                    continue
                gaps = torch.tensor([(scores[i][name] - scores[j][name]) / scale[name] for name in scale])
                value = float(gaps.std()) if len(gaps) > 1 else -float(gaps.abs().sum()) if len(gaps) else 0.0
                if best is None or value > best[0]:
                    best = (value, i, j)
        if best is not None:
            value, i, j = best
            found.append(Pair(prompt.columns["prompt"], answers[i], answers[j], "policy", "policy", value))
    return found


def _scales(said: Sequence[Sequence[dict[str, float]]]) -> dict[str, float]:
    names = list(said[0][0]) if said and said[0] else []
    scales = {}
    for name in names:
        values = torch.tensor([row[name] for rows in said for row in rows])
        scales[name] = max(float(values.std()) if len(values) > 1 else 1.0, 1e-6)
    return scales


def blind(
    opened: Opened, registry: Registry, prompts: Sequence[Any], *, seed: int = 0, most: int = 256
) -> list[Pair]:
    """Of each prompt an answer of the policy and one of the reference; equal ones are left out."""
    ours, _ = _written(opened, registry, prompts, POLICY, 1, seed, most)
    theirs, _ = _written(opened, registry, prompts, REFERENCE, 1, seed, most)
    return [
        Pair(prompt.columns["prompt"], mine[0], other[0], "policy", "reference")
        for prompt, mine, other in zip(prompts, ours, theirs, strict=True)
        if mine[0].strip() != other[0].strip()
    ]


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
