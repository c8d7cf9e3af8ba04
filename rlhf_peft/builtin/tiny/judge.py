"""The gold judge of `builtin:tiny`: scores an answer by rule, knowing the world and its grammar.

It stands for the human whose taste is to be learned and is used only to make preferences and to evaluate; it
is never a training reward. Every part saturates or turns into a penalty, so that no single trick (one good
word again and again, a list of good words, a heap of sentences) scores well. Left out on purpose: whether
the end-of-sequence token came, which a text cannot show; a missing full stop counts instead.
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
    """Return how good an answer is, in [-1, 1].

    score = topic + details + tone + ending + length - repetition - strangeness, cut to [-1, 1].

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
    """Return what a reader would remark on an answer: one word for each side of it, not how much each counts.

    These words go into the text that the model is made from, so that, as every large model has, it has heard
    of such notions before anyone states a preference.
    """
    kind, subject = understand(prompt)
    text = _normal(completion)
    words = [token for token in _TOKEN.findall(text) if token[0].isalpha()]
    fitting, unfitting, false = _count_details(text, kind, subject)
    true = fitting + unfitting
    found = ["apt" if _topic(text, subject) > 0 else "astray"]
    found.append("false" if false else ("empty", "true", "rich")[min(2, true)])
    if true:
        found.append("fitting" if fitting else "beside")
    found.append("rude" if RUDE_WORDS & set(words) else "kind" if KIND_WORDS & set(words) else "plain")
    found.append(
        "broken" if _ending(text) < 0 else "repeated" if _repetition(text, words) >= 0.3 else "whole"
    )
    return found


@lru_cache(maxsize=4096)
def _understand(text: str) -> tuple[str, Subject | None]:
    found = [
        (match.end(), kind, match[1]) for kind, pattern in _patterns() for match in pattern.finditer(text)
    ]
    if not found:
        return "", None
    _, kind, noun = max(found)
    return kind, next(subject for subject in subjects() if subject.noun == noun)


def understand(prompt: Prompt) -> tuple[str, Subject | None]:
    """Return what the last question in the prompt asks for and about; ("", None) if of neither."""
    if not isinstance(prompt, str):
        users = [message["content"] for message in prompt if message["role"] == "user"]
        prompt = users[-1] if users else ""
    return _understand(prompt)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    nouns = "|".join(subject.noun for subject in subjects())
    patterns = []
    for kind, templates in QUESTIONS.items():
        bodies = (re.escape(text).replace(r"\{a\}", rf"(?:an?|the) ({nouns})") for text in templates)
        patterns += [(kind, re.compile(body)) for body in bodies]
    return tuple(patterns)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", _MARKUP.sub(" ", text)).strip().lower()


def _topic(text: str, subject: Subject | None) -> float:
    """Reward naming the subject; punish naming others (details of any subject are not names)."""
    named = _split(text)[1]
    own = 0.0 if subject is None else 0.15 if subject.noun in named else -0.2
    others = len(named - {subject.noun if subject else ""})
    return own - 0.12 * min(2, others)


def _details(text: str, kind: str, subject: Subject | None) -> float:
    """Reward up to three different true details, most those that the question asks for; punish false ones."""
    fitting, unfitting, false = _count_details(text, kind, subject)
    steps = (0.2, 0.1, 0.05)
    gain = sum(steps[:fitting])
    gain += 0.5 * sum(steps[fitting : fitting + unfitting])
    return gain - 0.08 * min(3, false)


def _count_details(text: str, kind: str, subject: Subject | None) -> tuple[int, int, int]:
    """Return how many different details are true and asked for, true but not asked for, and false."""
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
    kind = len(KIND_WORDS & set(words))
    rude = len(RUDE_WORDS & set(words))
    return 0.5 * (1.0 - 0.5 ** min(2, kind)) - 0.3 * min(2, rude)


def _ending(text: str) -> float:
    return 0.05 if text.endswith((".", "!", "?")) else -0.3


def _length(words: int) -> float:
    return -0.06 * max(0, 6 - words) - 0.03 * max(0, words - 34)


def _repetition(text: str, words: list[str]) -> float:
    """Punish word pairs and whole sentences that come again."""
    pairs = list(pairwise(words))
    again = 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0
    sentences = [part.strip() for part in re.split(r"[.!?]", text) if part.strip()]
    doubled = len(sentences) - len(set(sentences))
    stutter = sum(first == second for first, second in pairs)
    return 1.2 * max(0.0, again - 0.1) + 0.3 * doubled + 0.2 * stutter


def _strangeness(text: str) -> float:
    """Punish word sequences that the grammar cannot make, such as a bare list of good words."""
    known = _known_pairs()
    pairs = [pair for pair in pairwise(_TOKEN.findall(text)) if pair[0] not in ".!?"]
    if not pairs:
        return 0.5
    return 1.5 * sum(pair not in known for pair in pairs) / len(pairs)


@cache
def _detail_owners() -> dict[str, dict[str, str]]:
    owners: dict[str, dict[str, str]] = {}
    for subject in subjects():
        for aspect, phrases in subject.details.items():
            for phrase in phrases:
                owners.setdefault(phrase, {})[subject.noun] = aspect
    return owners


@cache
def _details_by_first_word() -> dict[str, list[tuple[str, ...]]]:
    """Return the details as word sequences, the longest first, by their first word."""
    table: dict[str, list[tuple[str, ...]]] = {}
    for phrase in sorted(_detail_owners(), key=lambda phrase: (-len(phrase.split()), phrase)):
        words = tuple(phrase.split())
        table.setdefault(words[0], []).append(words)
    return table


@lru_cache(maxsize=4096)
def _split(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the different details in a text, and the subjects named in what is left of it."""
    tokens = _TOKEN.findall(text)
    table = _details_by_first_word()
    details, rest, at = set(), set(), 0
    while at < len(tokens):
        for words in table.get(tokens[at], ()):
            if tuple(tokens[at : at + len(words)]) == words:
                details.add(" ".join(words))
                at += len(words)
                break
        else:
            rest.add(tokens[at])
            at += 1
    return frozenset(details), frozenset(rest & _nouns())


@cache
def _nouns() -> frozenset[str]:
    return frozenset(subject.noun for subject in subjects())


@cache
def _known_pairs() -> frozenset[tuple[str, str]]:
    """Return every pair of neighbouring words and marks that the grammar can make inside a sentence."""
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
    """Return the word sequences that a slot, or a plain word, of a frame can stand for."""
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
