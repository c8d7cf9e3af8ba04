"""The closed world of `builtin:tiny`: the subjects that its model can talk about, and their facts.

The table in `world.txt` lists subjects and, for each, what it has, what it does, what one can do with it and what
it is like. Every phrase is a fact that the judge can look up. Left out on purpose: plurals and the past tense. The
world is small enough for a model of a million weights to memorise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

ASPECTS = ("trait", "act", "use", "image")
"""The columns of the table: "it has ...", "it ...", "you can ...", "it is ..."."""


@dataclass(frozen=True)
class Subject:
    """A subject of questions, with its article and its true details by aspect."""

    noun: str
    article: str
    details: dict[str, tuple[str, ...]]

    def __hash__(self) -> int:
        return hash(self.noun)

    def named(self, adjective: str = "") -> str:
        """The subject with its article and, if given, an adjective."""
        if self.article == "the":
            return " ".join(filter(None, ("the", adjective, self.noun)))
        following = adjective or self.noun
        return " ".join(filter(None, ("an" if following[0] in "aeiou" else "a", adjective, self.noun)))


def _parse(block: str) -> Subject:
    """Read one block of the table."""
    head, *lines = (line.strip() for line in block.strip().splitlines())
    article, noun = head.split(" ", 1)
    phrases = (tuple(phrase.strip() for phrase in line.split(";")) for line in lines)
    return Subject(noun, article, dict(zip(ASPECTS, phrases, strict=True)))


@cache
def subjects() -> tuple[Subject, ...]:
    """Every subject of the world, in the order of the table."""
    text = (files(__package__) / "world.txt").read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if not block.startswith("#")]
    return tuple(_parse(block) for block in blocks)
