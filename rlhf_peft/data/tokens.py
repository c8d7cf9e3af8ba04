"""Texts to tokens, many texts in one call.

What encodes a row is a generator: it yields the texts whose tokens it needs and is sent the tokens. So the same code
encodes one row alone (`alone`) and thousands of rows at once (`batches.in_batches`), where one call of the tokenizer,
which has threads of its own, answers all of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Tokens:
    """The tokens of one text.

    Args:
        ids: of the tokens.
        tokenizer: that made them.
        encoding: of the library `tokenizers`, which knows the place of each token; None: not known.

    Attributes:
        ids: of the tokens.
    """

    __slots__ = ("_encoding", "_offsets", "_tokenizer", "ids")

    def __init__(self, ids: list[int], tokenizer: Any, encoding: Any = None) -> None:
        self.ids = ids
        self._tokenizer = tokenizer
        self._encoding = encoding
        self._offsets: list[tuple[int, int]] | None = None

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """For each token the first letter that it stands for, and the one after its last."""
        if self._offsets is None:
            self._offsets = self._counted() if self._encoding is None else list(self._encoding.offsets)
        return self._offsets

    def start(self, place: int) -> int:
        """The first letter that the token at a place stands for."""
        if self._encoding is not None and self._offsets is None:
            span = self._encoding.token_to_chars(place)  # the offsets of all tokens would take long to copy
            if span is not None:
                return int(span[0])
        return self.offsets[place][0]

    def _counted(self) -> list[tuple[int, int]]:
        """Offsets by the letters of what is decoded: a tokenizer in Python knows none."""
        decode = self._tokenizer.decode
        ends = [len(decode(self.ids[: place + 1])) for place in range(len(self.ids))]
        return list(zip([0, *ends], ends, strict=False))


Steps = Generator[list[str], Sequence[Tokens], T]
"""Yields texts, is sent their tokens in the same order, and returns what was to be encoded."""


def tokenize(tokenizer: Any, texts: list[str]) -> list[Tokens]:
    """The tokens of each text, without what a tokenizer puts before or after a text.

    Args:
        tokenizer: a transformers tokenizer.
        texts: any number of texts.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        found = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [Tokens(list(ids), tokenizer) for ids in found]
    found = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    return [
        Tokens(ids, tokenizer, encoding)
        for ids, encoding in zip(found["input_ids"], found.encodings, strict=True)
    ]


def alone(tokenizer: Any, steps: Steps[T]) -> T:
    """What the steps of one row return."""
    try:
        texts = next(steps)
        while True:
            texts = steps.send(tokenize(tokenizer, texts))
    except StopIteration as end:
        value: T = end.value
        return value
