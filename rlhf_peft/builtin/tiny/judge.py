"""The gold judge of `builtin:tiny`: scores an answer by rules, with knowledge of the world and its grammar.

It takes the place of a human whose preferences are learned. It is used only to make preferences and to evaluate,
never as a training reward. Every part of the score saturates or becomes a penalty, so that no single trick
(repeating one good word, a list of good words, many sentences) scores well. Left out on purpose: whether the
end-of-sequence token came, which a text cannot show; a missing full stop counts instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise, product

from .grammar import ADJECTIVES, BODIES, CLOSINGS, FITTING, OPENINGS, QUESTIONS, SEQUELS
from .world import ASPECTS, Subject, subjects

Prompt = str | Sequence[Mapping[str, str]]

KIND_WORDS = frozenset(ADJECTIVES["kind"]) | {
    "glad",
    "gladly",
    "happy",
    "pleasure",
    "love",
    "thank",
    "hope",
    "fun",
    "enjoy",
    "friend",
    "smile",
    "joy",
}
RUDE_WORDS = frozenset(ADJECTIVES["rude"]) | {
    "bore",
    "hate",
    "tired",
    "nobody",
    "alone",
    "waste",
    "away",
    "somebody",
    "yourself",
    "care",
}

_MARKUP = re.compile(r"<\|[^|>]*\|>")
_TOKEN = re.compile(r"[a-z']+|[.,:;!?]")


def gold_score(prompt: Prompt, completion: str) -> float:
    """Score an answer, in [-1, 1].

    score = topic + details + tone + ending + length - repetition - strangeness, clipped to [-1, 1].

    Args:
        prompt: the question, as plain text, as rendered by the chat template, or as messages.
        completion: the answer; special tokens in it are ignored.
    """
    kind, subject = understand(prompt)
    text = _normal(completion)
    words = [token for token in _TOKEN.findall(text) if token[0].isalpha()]
    if not words:
        return -1.0
    score = _topic(text, subject) + _details(text, kind, subject) + _tone(words)
    score += _ending(text) + _length(len(words)) - _repetition(text, words) - _strangeness(text)
    return max(-1.0, min(1.0, score))


def remarks(prompt: Prompt, completion: str) -> list[str]:
    """Describe an answer with one word for each side of it, without weights.

    These words are part of the texts that the model is pretrained on, so that it knows these notions before any
    preference is learned, as large models do.
    """
    kind, subject = understand(prompt)
    text = _normal(completion)
    words = [token for token in _TOKEN.findall(text) if token[0].isalpha()]
    fitting, unfitting, false = _count_details(text, kind, subject)
    true_details = fitting + unfitting
    words_of_note = ["apt" if _topic(text, subject) > 0 else "astray"]
    words_of_note.append("false" if false else ("empty", "true", "rich")[min(2, true_details)])
    if true_details:
        words_of_note.append("fitting" if fitting else "beside")
    words_of_note.append(
        "rude" if RUDE_WORDS & set(words) else "kind" if KIND_WORDS & set(words) else "plain"
    )
    words_of_note.append(
        "broken" if _ending(text) < 0 else "repeated" if _repetition(text, words) >= 0.3 else "whole"
    )
    return words_of_note


@lru_cache(maxsize=4096)
def _understand(text: str) -> tuple[str, Subject | None]:
    """The kind and the subject of the last question in a text."""
    matches = [
        (match.end(), kind, match[1]) for kind, pattern in _patterns() for match in pattern.finditer(text)
    ]
    if not matches:
        return "", None
    _, kind, noun = max(matches)
    return kind, next(subject for subject in subjects() if subject.noun == noun)


def understand(prompt: Prompt) -> tuple[str, Subject | None]:
    """The kind and the subject of the last question in the prompt; ("", None) if there is none."""
    if not isinstance(prompt, str):
        users = [message["content"] for message in prompt if message["role"] == "user"]
        prompt = users[-1] if users else ""
    return _understand(prompt)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """For each question template, its kind and a pattern that matches it."""
    nouns = "|".join(subject.noun for subject in subjects())
    patterns = []
    for kind, templates in QUESTIONS.items():
        bodies = (re.escape(text).replace(r"\{a\}", rf"(?:an?|the) ({nouns})") for text in templates)
        patterns += [(kind, re.compile(body)) for body in bodies]
    return tuple(patterns)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", _MARKUP.sub(" ", text)).strip().lower()


def _topic(text: str, subject: Subject | None) -> float:
    """Reward for naming the subject, penalty for naming others (details of any subject do not count as names)."""
    named = _split(text)[1]
    own_score = 0.0 if subject is None else 0.15 if subject.noun in named else -0.2
    other_count = len(named - {subject.noun if subject else ""})
    return own_score - 0.12 * min(2, other_count)


def _details(text: str, kind: str, subject: Subject | None) -> float:
    """Reward for up to three different true details, most for those that were asked for; penalty for false ones."""
    fitting, unfitting, false = _count_details(text, kind, subject)
    steps = (0.2, 0.1, 0.05)
    gain = sum(steps[:fitting])
    gain += 0.5 * sum(steps[fitting : fitting + unfitting])
    return gain - 0.08 * min(3, false)


def _count_details(text: str, kind: str, subject: Subject | None) -> tuple[int, int, int]:
    """Number of different details that are true and asked for, true but not asked for, and false."""
    fitting = unfitting = false = 0
    if subject is None:
        return 0, 0, 0
    for phrase in _split(text)[0]:
        if (aspect := _detail_owners()[phrase].get(subject.noun)) is None:
            false += 1
        elif aspect in FITTING[kind]:
            fitting += 1
        else:
            unfitting += 1
    return fitting, unfitting, false


def _tone(words: list[str]) -> float:
    """Reward for kind words, penalty for rude ones."""
    kind = len(KIND_WORDS & set(words))
    rude = len(RUDE_WORDS & set(words))
    return 0.5 * (1.0 - 0.5 ** min(2, kind)) - 0.3 * min(2, rude)


def _ending(text: str) -> float:
    """Reward for a complete last sentence, penalty for one that breaks off."""
    return 0.05 if text.endswith((".", "!", "?")) else -0.3


def _length(words: int) -> float:
    """Penalty for answers that are too short or too long."""
    return -0.06 * max(0, 6 - words) - 0.03 * max(0, words - 34)


def _repetition(text: str, words: list[str]) -> float:
    """Penalty for repeated word pairs and whole sentences."""
    pairs = list(pairwise(words))
    again = 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0
    sentences = [part.strip() for part in re.split(r"[.!?]", text) if part.strip()]
    doubled = len(sentences) - len(set(sentences))
    stutter = sum(first == second for first, second in pairs)
    return 1.2 * max(0.0, again - 0.1) + 0.3 * doubled + 0.2 * stutter


def _strangeness(text: str) -> float:
    """Penalty for word sequences that the grammar cannot make, such as a bare list of good words."""
    known = _known_pairs()
    pairs = [pair for pair in pairwise(_TOKEN.findall(text)) if pair[0] not in ".!?"]
    if not pairs:
        return 0.5
    return 1.5 * sum(pair not in known for pair in pairs) / len(pairs)


@cache
def _detail_owners() -> dict[str, dict[str, str]]:
    """For each detail, the subjects that it is true of, with its aspect."""
    owners: dict[str, dict[str, str]] = {}
    for subject in subjects():
        for aspect, phrases in subject.details.items():
            for phrase in phrases:
                owners.setdefault(phrase, {})[subject.noun] = aspect
    return owners


@cache
def _details_by_first_word() -> dict[str, list[tuple[str, ...]]]:
    """The details as word sequences, the longest first, by their first word."""
    table: dict[str, list[tuple[str, ...]]] = {}
    for phrase in sorted(_detail_owners(), key=lambda phrase: (-len(phrase.split()), phrase)):
        words = tuple(phrase.split())
        table.setdefault(words[0], []).append(words)
    return table


@lru_cache(maxsize=4096)
def _split(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The different details in a text, and the subjects named in the rest of it."""
    tokens = _TOKEN.findall(text)
    table = _details_by_first_word()
    details, rest, position = set(), set(), 0
    while position < len(tokens):
        for words in table.get(tokens[position], ()):
            if tuple(tokens[position : position + len(words)]) == words:
                details.add(" ".join(words))
                position += len(words)
                break
        else:
            rest.add(tokens[position])
            position += 1
    return frozenset(details), frozenset(rest & _nouns())


@cache
def _nouns() -> frozenset[str]:
    """The nouns of all subjects."""
    return frozenset(subject.noun for subject in subjects())


@cache
def _known_pairs() -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words and punctuation marks that the grammar can make inside a sentence."""
    pairs: set[tuple[str, str]] = set()
    for table in (OPENINGS, CLOSINGS, BODIES, SEQUELS):
        for frame in (frame for frames in table.values() for frame in frames):
            parts = [_alternatives(part) for part in re.findall(r"\{\w+\}|[\w']+|[.,:?]", frame)]
            for part in parts:
                pairs.update(pair for phrase in part for pair in pairwise(phrase))
            for left, right in pairwise(parts):
                pairs.update(product({phrase[-1] for phrase in left}, {phrase[0] for phrase in right}))
    return frozenset(pairs)


@cache
def _alternatives(part: str) -> tuple[tuple[str, ...], ...]:
    """The word sequences that a slot, or a plain word, of a frame can become."""
    slot = part.strip("{}")
    phrases: Iterable[str]
    if slot == part:
        phrases = [part.lower()]
    elif slot in ADJECTIVES:
        phrases = ADJECTIVES[slot]
    elif slot in ASPECTS:
        phrases = [phrase for subject in subjects() for phrase in subject.details[slot]]
    elif slot == "noun":
        phrases = [subject.noun for subject in subjects()]
    else:
        adjectives = ["", *(word for words in ADJECTIVES.values() for word in words)]
        phrases = [subject.named(word) for subject in subjects() for word in adjectives]
    return tuple(tuple(_TOKEN.findall(phrase)) for phrase in phrases)
