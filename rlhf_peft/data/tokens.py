"""Tokenizes texts, many of them in one call.

Code that encodes a row is a generator: it yields the texts whose tokens it needs, and receives the tokens. So the same
code encodes one row alone (`encode_one`) and thousands of rows at once (`batches.in_batches`), where one call of the
tokenizer, which has threads of its own, serves all of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Tokens:
    """The tokens of one text.

    Args:
        ids: token ids.
        tokenizer: the tokenizer that made them.
        encoding: the `Encoding` of the library `tokenizers`, which knows the position of each token in the
            text; None if there is none.

    Attributes:
        ids: token ids.
    """

    __slots__ = ("_encoding", "_offsets", "_tokenizer", "ids")

    def __init__(self, ids: list[int], tokenizer: Any, encoding: Any = None) -> None:
        self.ids = ids
        self._tokenizer = tokenizer
        self._encoding = encoding
        self._offsets: list[tuple[int, int]] | None = None

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """For each token, the index of its first character in the text and the index after its last."""
        if self._offsets is None:
            self._offsets = (
                self._decoded_offsets() if self._encoding is None else list(self._encoding.offsets)
            )
        return self._offsets

    def start(self, index: int) -> int:
        """Return the index of the first character of the token at `index`."""
        if self._encoding is not None and self._offsets is None:
            span = self._encoding.token_to_chars(index)  # the offsets of all tokens would take long to copy
            if span is not None:
                return int(span[0])
        return self.offsets[index][0]

    def joined(self, cut: int, rest: Tokens) -> Tokens:
        """Tokens of a text that begins like this one.

        Args:
            cut: index of the character at which the text was cut, so that both of its parts have the tokens of the
                whole (see `word_borders`); this text reaches beyond it.
            rest: tokens of the text from `cut` on.
        """
        return _Joined(self, cut, rest)

    def size_before(self, cut: int) -> int:
        """Number of tokens before the blank at index `cut`, at which a word begins."""
        size = None if self._encoding is None else self._encoding.char_to_token(cut + 1)
        size = len(self.ids) if size is None else int(size)
        while size and self.start(size - 1) >= cut:  # the blank may be a token of its own
            size -= 1
        return size

    def _decoded_offsets(self) -> list[tuple[int, int]]:
        """Compute offsets by decoding ever longer prefixes, for a tokenizer in Python, which gives no offsets."""
        decode = self._tokenizer.decode
        ends = [len(decode(self.ids[: index + 1])) for index in range(len(self.ids))]
        return list(zip([0, *ends], ends, strict=False))


class _Joined(Tokens):
    """The tokens of a text of which the beginning and the rest were tokenized separately; see `Tokens.joined`."""

    __slots__ = ("_cut", "_first", "_rest", "_size")

    def __init__(self, first: Tokens, cut: int, rest: Tokens) -> None:
        self._first, self._cut, self._rest = first, cut, rest
        self._size = first.size_before(cut)
        super().__init__(first.ids[: self._size] + rest.ids, None)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        cut = self._cut
        return [
            *self._first.offsets[: self._size],
            *((start + cut, end + cut) for start, end in self._rest.offsets),
        ]

    def start(self, index: int) -> int:
        if index < self._size:
            return self._first.start(index)
        return self._cut + self._rest.start(index - self._size)


Steps = Generator[list[str], Sequence[Tokens], T]
"""A generator that yields texts, receives their tokens in the same order, and returns the encoded value."""


def tokenize(tokenizer: Any, texts: list[str]) -> list[Tokens]:
    """Tokenize each text, without the special tokens that a tokenizer adds before or after a text.

    Args:
        tokenizer: a transformers tokenizer.
        texts: any number of texts.

    Returns:
        The tokens of each text, in the same order.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        all_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [Tokens(list(ids), tokenizer) for ids in all_ids]
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    return [
        Tokens(ids, tokenizer, encoding)
        for ids, encoding in zip(encoded["input_ids"], encoded.encodings, strict=True)
    ]


def encode_one(tokenizer: Any, steps: Steps[T]) -> T:
    """Run the steps of one row alone, and return their value."""
    try:
        texts = next(steps)
        while True:
            texts = steps.send(tokenize(tokenizer, texts))
    except StopIteration as end:
        value: T = end.value
        return value
