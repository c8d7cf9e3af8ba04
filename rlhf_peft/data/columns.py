"""Guesses which column of a file is which of ours, for the hint in an error message."""

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


def suggest(found: Sequence[str], shapes: Sequence[tuple[str, ...]]) -> tuple[dict[str, str], bool]:
    """The mapping to print: our column to the file's.

    Args:
        found: columns of the file.
        shapes: sets of columns that would do, the preferred one first.

    Returns:
        The first shape that can be mapped whole, and True; else the one with the most guesses, `YOUR_COLUMN`
        for the rest, and False.
    """
    best: dict[str, str] = {}
    for shape in shapes:
        guess = guess_columns(found, shape)
        if len(guess) == len(shape):
            return guess, True
        filled = {ours: guess.get(ours, "YOUR_COLUMN") for ours in shape}
        if not best or len(guess) > sum(value != "YOUR_COLUMN" for value in best.values()):
            best = filled
    return best, False


MORE = ("input", "context", "passage", "document", "background", "article")
"""Columns that belong to a prompt which stands in another one."""


def whole_prompt(mapping: Mapping[str, str], found: Sequence[str]) -> dict[str, str | list[str]]:
    """The mapping with what belongs to the prompt beside it, such as Alpaca's `input`."""
    more = [name for name in found if name.lower() in MORE and name not in mapping.values()]
    if not more or mapping.get("prompt") not in found:
        return dict(mapping)
    return {**mapping, "prompt": [mapping["prompt"], *more]}


def as_yaml(mapping: Mapping[str, str | Sequence[str]]) -> str:
    """A mapping as the command line takes it: `{prompt: [instruction, input], completion: output}`."""
    written = {k: v if isinstance(v, str) else f"[{', '.join(v)}]" for k, v in mapping.items()}
    return f"{{{', '.join(f'{ours}: {theirs}' for ours, theirs in written.items())}}}"


def guess_columns(found: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """For each wanted column the most alike of those found; each is used once, weak likenesses not at all."""
    pairs = [(ours, -place, theirs) for ours in wanted for place, theirs in enumerate(found)]
    scores = sorted(
        ((likeness(theirs, ours), place, ours, theirs) for ours, place, theirs in pairs), reverse=True
    )
    guess: dict[str, str] = {}
    for score, _, ours, theirs in scores:
        if score >= 0.75 and ours not in guess and theirs not in guess.values():
            guess[ours] = theirs
    return {ours: guess[ours] for ours in wanted if ours in guess}


def likeness(theirs: str, ours: str) -> float:
    """From 0 to 1: 1 for our own name, a little less for another name of it or a name that holds one."""
    name = "".join(letter for letter in theirs.lower() if letter.isalnum())
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", theirs).lower())
    best = 0.0
    for place, other in enumerate(OTHER_NAMES[ours]):
        near = difflib.SequenceMatcher(None, name, other).ratio()
        if name == other:
            near = 1.0
        elif other in words or (len(other) > 3 and other in name):
            near = 0.9
        best = max(best, near - 0.01 * place)
    return best
