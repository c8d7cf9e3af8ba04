"""The data of `builtin:tiny`: demonstrations, preferences and prompts for any seed, and the gold judge.

Rows are in TRL's conversational format. Every function is deterministic: the same arguments give the same rows on
any machine. A question is a template and a subject. One such pair in eight is held out for testing: it occurs in no
training row, nor in the text that the model was made from, though its template and its subject do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any, Literal

from .grammar import QUESTIONS, answer, question
from .judge import gold_score, remarks
from .world import Subject, subjects

__all__ = ["demonstrations", "gold_score", "preferences", "pretraining_texts", "prompts"]

Split = Literal["train", "test"]
Row = dict[str, Any]
_Ask = tuple[str, int, Subject]

_SYSTEMS = ("You are a helpful assistant.", "Answer in a few words.", "Be kind.", "You know a small world.")


def prompts(n: int, seed: int, split: Split = "train") -> list[Row]:
    """N prompts; no prompt occurs twice before every prompt of the split has occurred once."""
    asks = _asks(Random(f"prompts-{seed}"), split)
    return [{"prompt": _user(next(asks))} for _ in range(n)]


def demonstrations(n: int, seed: int, split: Split = "train") -> list[Row]:
    """N questions, each with an answer of medium quality, so that much can still be learned."""
    rng = Random(f"demonstrations-{seed}")
    asks = _asks(rng, split)
    rows = []
    for ask in (next(asks) for _ in range(n)):
        text = answer(rng, ask[2], ask[0], rng.uniform(0.1, 0.6))
        rows.append({"prompt": _user(ask), "completion": _assistant(text)})
    return rows


def preferences(n: int, seed: int, noise: float = 0.1, split: Split = "train") -> list[Row]:
    """N questions, each with two answers; `chosen` is the better one according to the gold judge.

    Args:
        n: number of rows.
        seed: seed of every choice.
        noise: share of rows in which the two answers are exchanged, like human errors.
        split: questions to use.
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise is a share between 0 and 1, not {noise}")
    rng = Random(f"preferences-{seed}")
    asks = _asks(rng, split)
    rows = []
    for ask in (next(asks) for _ in range(n)):
        chosen, rejected = _pair(rng, ask)
        if rng.random() < noise:
            chosen, rejected = rejected, chosen
        rows.append({"prompt": _user(ask), "chosen": _assistant(chosen), "rejected": _assistant(rejected)})
    return rows


def pretraining_texts(n: int, seed: int) -> list[Row]:
    """N texts of all qualities: seven in eight are chats ("messages"), the others prose ("text").

    Few chats have a system message or a second turn. Four in five end with a "note" on the last answer. Only training
    questions are used.
    """
    rng = Random(f"pretraining-{seed}")
    asks = _asks(rng, "train")
    makers: tuple[Callable[[Random, Iterator[_Ask]], Row], ...] = (_chat, _prose)
    return [rng.choices(makers, weights=(7, 1))[0](rng, asks) for _ in range(n)]


def _chat(rng: Random, asks: Iterator[_Ask]) -> Row:
    """A chat, usually with a note on its last answer."""
    messages = [{"role": "system", "content": rng.choice(_SYSTEMS)}] if rng.random() < 0.04 else []
    for _ in range(2 if rng.random() < 0.04 else 1):
        ask = next(asks)
        messages += _user(ask) + _assistant(answer(rng, ask[2], ask[0], rng.uniform(0.0, 0.9)))
    if rng.random() < 0.2:
        return {"messages": messages}
    note = remarks(messages[-2]["content"], messages[-1]["content"])
    rng.shuffle(note)
    return {"messages": messages, "note": ", ".join(note) + "."}


def _prose(rng: Random, asks: Iterator[_Ask]) -> Row:
    """An answer without a question."""
    kind, _, subject = next(asks)
    return {"text": answer(rng, subject, kind, 0.5 + 0.5 * rng.random())}


def _pair(rng: Random, ask: _Ask) -> tuple[str, str]:
    """Two answers to a question, the better one first; their scores differ clearly."""
    prompt = question(*ask)
    while True:
        pair = [answer(rng, ask[2], ask[0], rng.uniform(0.1, 1.0)) for _ in range(2)]
        scores = [gold_score(prompt, text) for text in pair]
        if abs(scores[0] - scores[1]) > 0.15:
            return (pair[0], pair[1]) if scores[0] > scores[1] else (pair[1], pair[0])


@cache
def _questions(split: Split) -> tuple[_Ask, ...]:
    """The questions of a split; every template and every subject occurs in both splits."""
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    asks = []
    for row, subject in enumerate(subjects()):
        for block, (kind, templates) in enumerate(QUESTIONS.items()):
            for column in range(len(templates)):
                held_out = (row + column + 3 * block) % 8 == 0
                if held_out == (split == "test"):
                    asks.append((kind, column, subject))
    return tuple(asks)


def _asks(rng: Random, split: Split) -> Iterator[_Ask]:
    """Draw questions without end, each once per round."""
    order = list(_questions(split))
    while True:
        rng.shuffle(order)
        yield from order


def _user(ask: _Ask) -> list[dict[str, str]]:
    return [{"role": "user", "content": question(*ask)}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
