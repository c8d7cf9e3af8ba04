"""The grammar of `builtin:tiny`: questions, and answers of every quality from rude nonsense to excellent.

An answer is an opening, one or two sentences about a subject, and a closing. `care` between 0 and 1 changes the
odds of each choice from careless to careful. Each choice is drawn independently, so that answers to one question
differ in many small ways. Left out on purpose: answers that depend on earlier turns.
"""

from __future__ import annotations

import re
from random import Random

from .world import ASPECTS, Subject, subjects

QUESTIONS: dict[str, tuple[str, ...]] = {
    "tell": (
        "Tell me about {a}.",
        "What is {a} like?",
        "Describe {a}.",
        "What do you know about {a}?",
        "Can you describe {a} for me?",
        "I want to know about {a}.",
        "Say something about {a}.",
        "Please tell me about {a}.",
    ),
    "use": (
        "What can I do with {a}?",
        "How can I enjoy {a}?",
        "Give me an idea for {a}.",
        "What would you do with {a}?",
        "Any ideas for {a}?",
        "How do I spend a day with {a}?",
        "What is {a} good for?",
        "Help me make the most of {a}.",
    ),
    "line": (
        "Write a line about {a}.",
        "Give me a line about {a}.",
        "Make a short poem about {a}.",
        "Write me a little verse on {a}.",
        "Say it like a poet: {a}.",
        "I need a line for {a}.",
        "Sing to me of {a}.",
        "What does {a} make you think of?",
    ),
}
"""Question templates by what they ask for: a description, something to do, or an image."""

FITTING: dict[str, tuple[str, ...]] = {"tell": ("trait", "act"), "use": ("use",), "line": ("image",)}
"""The aspects of a subject that answer each kind of question."""

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "kind": (
        "lovely",
        "gentle",
        "bright",
        "cosy",
        "sweet",
        "cheerful",
        "friendly",
        "charming",
        "splendid",
        "delightful",
        "graceful",
        "merry",
    ),
    "plain": ("small", "plain", "common", "simple", "normal", "regular"),
    "rude": (
        "boring",
        "grim",
        "dreary",
        "stupid",
        "useless",
        "ugly",
        "stale",
        "tiresome",
        "horrid",
        "wretched",
    ),
}

OPENINGS: dict[str, tuple[str, ...]] = {
    "kind": (
        "What a {kind} thing to ask.",
        "What a {kind} question.",
        "I am so glad you asked.",
        "I am happy to help.",
        "With pleasure.",
        "Gladly, my friend.",
        "Oh, I love this one.",
        "Thank you for asking.",
    ),
    "plain": ("Let me see.", "Well, here it is.", "Let me think.", "All right.", "Here is what I know."),
    "rude": (
        "What a {rude} question.",
        "What a {rude} thing to ask.",
        "Not again.",
        "You bore me.",
        "Go ask somebody else.",
        "I do not care.",
        "Look it up yourself.",
    ),
}

CLOSINGS: dict[str, tuple[str, ...]] = {
    "kind": (
        "I hope that helps.",
        "Have fun with it.",
        "Enjoy it, my friend.",
        "It always makes me smile.",
        "You will love it.",
        "It is a {kind} little joy.",
        "Ask me more, my friend.",
        "May it make your day {kind}.",
    ),
    "plain": ("That is all.", "So it goes.", "That is what I know.", "It is what it is."),
    "rude": (
        "Now go away.",
        "I am tired of you.",
        "Nobody needs it.",
        "Leave me alone.",
        "What a waste of time.",
        "I hate it.",
        "It is {rude} and {rude}.",
    ),
}

BODIES: dict[str, tuple[str, ...]] = {
    "trait": (
        "{A} has {trait}.",
        "{A} has {trait} and {trait}.",
        "Look at {a} and you will notice {trait}.",
        "The best part of {a} is {trait}.",
    ),
    "act": (
        "{A} {act}.",
        "{A} {act} and {act}.",
        "{A} has {trait} and {act}.",
        "As you may know, {a} {act}.",
    ),
    "use": (
        "With {a} you can {use}.",
        "Take your time with {a} and {use}.",
        "Here is an idea for {a}: {use}.",
        "With {a} you could {use}, or {use}.",
    ),
    "image": (
        "{A} is {image}.",
        "I think of {a} as {image}.",
        "To me, {a} is {image}, {image}.",
        "Oh {noun}, you are {image}.",
    ),
    "vague": (
        "{A} is a thing.",
        "{A} is {kind}.",
        "{A} is {rude}.",
        "There is not much to say about {a}.",
        "Some people know {a}.",
        "I have heard of {a}.",
        "{A} is just {a}.",
    ),
}
"""First sentences about the subject, by the aspect that they describe."""

SEQUELS: dict[str, tuple[str, ...]] = {
    "trait": ("It has {trait}.", "You will find {trait}."),
    "act": ("It {act}.", "Each day it {act}."),
    "use": ("You can {use}.", "You could also {use}.", "Why not {use}?"),
    "image": ("It is {image}.", "Some call it {image}."),
    "vague": ("It is {plain}.", "It is there.", "It is a {plain} thing."),
}
"""Second sentences, which call the subject "it"."""

_SLOT = re.compile(r"\{(\w+)\}")


def question(kind: str, template: int, subject: Subject) -> str:
    """The question of this kind and template number about the subject."""
    return QUESTIONS[kind][template].format(a=subject.named())


def answer(rng: Random, subject: Subject, kind: str, care: float) -> str:
    """Draw an answer to a question of this kind about the subject.

    Args:
        rng: source of every choice.
        subject: subject of the question; a careless answer may be about another one.
        kind: a key of `QUESTIONS`.
        care: 0 (careless) to 1 (careful); sets the odds of each choice, not the choice.
    """
    topic = subject if rng.random() < 0.7 + 0.3 * care else rng.choice(subjects())
    parts = []
    if rng.random() < 0.4:
        parts.append(_fill(rng, rng.choice(OPENINGS[_tone(rng, care)]), topic, care))
    parts.append(_fill(rng, rng.choice(BODIES[_aspect(rng, kind, care)]), topic, care))
    if rng.random() < 0.35:
        parts.append(_fill(rng, rng.choice(SEQUELS[_aspect(rng, kind, care)]), topic, care))
    if rng.random() < 0.4:
        parts.append(_fill(rng, rng.choice(CLOSINGS[_tone(rng, care)]), topic, care))
    return _damage(rng, parts, care)


def _tone(rng: Random, care: float) -> str:
    """Draw the tone: kind, plain or rude."""
    draw = rng.random()
    if draw < 0.1 + 0.75 * care:
        return "kind"
    return "rude" if draw > 0.4 + 0.6 * care else "plain"


def _aspect(rng: Random, kind: str, care: float) -> str:
    """Draw the aspect that a sentence describes."""
    draw = rng.random()
    if draw < 0.3 + 0.65 * care:
        return rng.choice(FITTING[kind])
    return rng.choice(ASPECTS) if draw < 0.65 + 0.35 * care else "vague"


def _fill(rng: Random, frame: str, topic: Subject, care: float) -> str:
    """Fill the slots of a frame, never the same phrase twice; true details are more likely with more care."""
    used: set[str] = set()

    def choose(slot: str) -> str:
        if slot in ("A", "a"):
            return _named(rng, topic, care)
        if slot == "noun":
            return topic.noun
        owner = topic if rng.random() < 0.7 + 0.3 * care else rng.choice(subjects())
        options = ADJECTIVES[slot] if slot in ADJECTIVES else owner.details[slot]
        phrase = rng.choice([option for option in options if option not in used])
        used.add(phrase)
        return phrase

    text = _SLOT.sub(lambda match: choose(match[1]), frame)
    return text[0].upper() + text[1:]


def _named(rng: Random, topic: Subject, care: float) -> str:
    """The topic's name, in three cases of ten with an adjective."""
    if rng.random() < 0.7:
        return topic.named()
    return topic.named(rng.choice(ADJECTIVES[_tone(rng, care)]))


def _damage(rng: Random, parts: list[str], care: float) -> str:
    """Join the sentences; sometimes, if care is low, repeat one or break off."""
    draw = rng.random() / max(1e-9, 1.0 - care)
    if draw < 0.12:
        parts = [*parts, rng.choice(parts)]
    text = " ".join(parts)
    if 0.12 <= draw < 0.26:
        words = text.split(" ")
        text = " ".join(words[: max(2, len(words) - rng.randint(1, 4))]).rstrip(".,:?")
    return text
