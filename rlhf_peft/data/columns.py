"""Guesses which column of a file corresponds to which of ours, for the hint in an error message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "prompt",
        "question",
        "instruction",
        "query",
        "problem",
        "input",
        "request",
        "context",
        "task",
    ),
    "completion": ("completion", "answer", "response", "output", "solution", "target", "reply", "assistant"),
    "chosen": ("chosen", "good", "better", "preferred", "accepted", "winner", "best", "positive", "win"),
    "rejected": ("rejected", "bad", "worse", "dispreferred", "refused", "loser", "worst", "negative", "lose"),
    "label": ("label", "rating", "liked", "desirable", "thumbsup", "feedback", "iscorrect", "correct"),
    "messages": ("messages", "conversation", "dialogue", "dialog", "chat", "turns"),
    "text": ("text", "content", "story", "document", "sentence", "body"),
}


def suggest(names: Sequence[str], shapes: Sequence[tuple[str, ...]]) -> tuple[dict[str, str], bool]:
    """Propose a mapping from our columns to the file's.

    Args:
        names: columns of the file.
        shapes: sets of our columns that would do, the preferred one first.

    Returns:
        The mapping for the first shape whose columns can all be guessed, and True; otherwise the mapping with the most
        guesses, with `YOUR_COLUMN` for the others, and False.
    """
    best: dict[str, str] = {}
    for shape in shapes:
        guess = guess_columns(names, shape)
        if len(guess) == len(shape):
            return guess, True
        filled = {ours: guess.get(ours, "YOUR_COLUMN") for ours in shape}
        if not best or len(guess) > sum(value != "YOUR_COLUMN" for value in best.values()):
            best = filled
    return best, False


MORE = ("input", "context", "passage", "document", "background", "article")
"""Names of columns that often hold a second part of the prompt."""


def whole_prompt(mapping: Mapping[str, str], names: Sequence[str]) -> dict[str, str | list[str]]:
    """The mapping, with further columns that belong to the prompt joined to it, such as Alpaca's `input`."""
    extra = [column for column in names if column.lower() in MORE and column not in mapping.values()]
    if not extra or mapping.get("prompt") not in names:
        return dict(mapping)
    return {**mapping, "prompt": [mapping["prompt"], *extra]}


def as_yaml(mapping: Mapping[str, str | Sequence[str]]) -> str:
    """A mapping as the command line takes it: `{prompt: [instruction, input], completion: output}`."""
    texts = {k: v if isinstance(v, str) else f"[{', '.join(v)}]" for k, v in mapping.items()}
    return f"{{{', '.join(f'{ours}: {theirs}' for ours, theirs in texts.items())}}}"


def guess_columns(names: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """For each of our columns, the most similar column of the file; each is used once, weak similarities are not."""
    pairs = [(our_name, -index, theirs) for our_name in ours for index, theirs in enumerate(names)]
    scores = sorted(
        ((likeness(theirs, our_name), index, our_name, theirs) for our_name, index, theirs in pairs),
        reverse=True,
    )
    guess: dict[str, str] = {}
    for score, _, our_name, theirs in scores:
        if score >= 0.75 and our_name not in guess and theirs not in guess.values():
            guess[our_name] = theirs
    return {our_name: guess[our_name] for our_name in ours if our_name in guess}


def likeness(theirs: str, ours: str) -> float:
    """Similarity from 0 to 1: 1 for our own name, a little less for another common name or a name that contains one."""
    name = "".join(letter for letter in theirs.lower() if letter.isalnum())
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", theirs).lower())
    best = 0.0
    for index, other in enumerate(OTHER_NAMES[ours]):
        ratio = difflib.SequenceMatcher(None, name, other).ratio()
        if name == other:
            ratio = 1.0
        elif other in words or (len(other) > 3 and other in name):
            ratio = 0.9
        best = max(best, ratio - 0.01 * index)
    return best
