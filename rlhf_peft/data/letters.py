"""What a tokenizer makes of letters: whether it knows them, keeps them, or reads them as special tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .conversation import Messages

PROBE = "Aé\u200b ½ﬁ😀\x07"
"""Letters that a tokenizer may leave out or change."""


class Letters:
    """Finds what is to be said of rows whose letters a tokenizer does not take as they are.

    Args:
        tokenizer: a transformers tokenizer.
        eos_ids: ids that end an answer.
    """

    def __init__(self, tokenizer: Any, eos_ids: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = [*tokenizer.all_special_tokens, *(token for token in added if token.special)]
        self._special = tuple(dict.fromkeys(map(str, special)))
        self._ends = tuple(token for token in tokenizer.convert_ids_to_tokens(sorted(eos_ids)) if token)
        self._unknown, self._unknown_name = tokenizer.unk_token_id, tokenizer.unk_token
        self._faithful = self._kept(PROBE, tokenizer(PROBE, add_special_tokens=False)["input_ids"])

    def unknown(self, ids: Sequence[int]) -> set[str]:
        """A note where some ids are of the unknown token."""
        unknown = self._unknown
        if unknown is None or unknown in self.eos_ids or unknown not in ids:
            return set()
        return {f"hold letters that the tokenizer does not know; they become {self._unknown_name}"}

    def changed(self, text: str, ids: Sequence[int]) -> set[str]:
        """A note where a text's ids stand for other letters than its own."""
        if self._faithful or self.unknown(ids) or self._kept(text, ids):
            return set()
        return {"hold letters that the tokenizer leaves out or changes; they are trained on as it has them"}

    def special(self, *conversations: Messages) -> set[str]:
        """A note where special tokens stand in what is said, rather than around it; an end after an answer is none."""
        for message in (message for messages in conversations for message in messages):
            said = (message["content"] or "").rstrip()
            while message["role"] == "assistant" and said.endswith(self._ends) and self._ends:
                said = said.removesuffix(next(end for end in self._ends if said.endswith(end))).rstrip()
            held = next((token for token in self._special if token in said), None)
            if held is not None:
                return {
                    f"hold {held} in what is said, which the tokenizer reads as that special token, not as text"
                }
        return set()

    def ends(self, answers: Iterable[Sequence[int]]) -> set[str]:
        """A note where plain answers go on after an end."""
        if not all(self.eos_ids.isdisjoint(answer[:-1]) for answer in answers):
            return {"hold an end of text inside an answer; in use, a completion stops there"}
        return set()

    def _kept(self, text: str, ids: Sequence[int]) -> bool:
        kept = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return normal(kept) == normal(text)


def normal(text: str) -> str:
    """A text without blanks, with letters composed (NFC)."""
    return unicodedata.normalize("NFC", "".join(text.split()))
