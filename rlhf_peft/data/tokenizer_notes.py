"""Notes on texts that a tokenizer does not encode faithfully.

They tell of unknown characters, of changed characters, and of special tokens inside a text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .conversation import Messages

PROBE = "Aé\u200b ½ﬁ😀\x07"
"""Characters that a tokenizer may leave out or change."""


class TokenizerNotes:
    """Finds rows whose characters a tokenizer does not encode as they are, and describes what happens to them.

    Each method returns a set of notes, which is empty if there is nothing to report.

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
        self._faithful = self._decodes_back(PROBE, tokenizer(PROBE, add_special_tokens=False)["input_ids"])

    def unknown(self, ids: Sequence[int]) -> set[str]:
        """A note if some of the ids are the unknown token."""
        unknown = self._unknown
        if unknown is None or unknown in self.eos_ids or unknown not in ids:
            return set()
        return {f"hold letters that the tokenizer does not know; they become {self._unknown_name}"}

    def changed(self, text: str, ids: Sequence[int]) -> set[str]:
        """A note if the ids of a text decode to other characters than the text's own."""
        if self._faithful or self.unknown(ids) or self._decodes_back(text, ids):
            return set()
        return {"hold letters that the tokenizer leaves out or changes; they are trained on as it has them"}

    def special(self, *conversations: Messages) -> set[str]:
        """A note if a content holds special tokens; an end token after an answer does not count."""
        for message in (message for messages in conversations for message in messages):
            content = (message["content"] or "").rstrip()
            while message["role"] == "assistant" and content.endswith(self._ends) and self._ends:
                content = content.removesuffix(
                    next(end for end in self._ends if content.endswith(end))
                ).rstrip()
            token = next((token for token in self._special if token in content), None)
            if token is not None:
                return {
                    f"hold {token} in what is said, which the tokenizer reads as that special token, not as text"
                }
        return set()

    def ends(self, answers: Iterable[Sequence[int]]) -> set[str]:
        """A note if a plain answer continues after an end token."""
        if not all(self.eos_ids.isdisjoint(answer[:-1]) for answer in answers):
            return {"hold an end of text inside an answer; in use, a completion stops there"}
        return set()

    def _decodes_back(self, text: str, ids: Sequence[int]) -> bool:
        """Whether decoding the ids gives the text again, blanks aside."""
        decoded = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return normal(decoded) == normal(text)


def normal(text: str) -> str:
    """A text without blanks, with composed characters (NFC)."""
    return unicodedata.normalize("NFC", "".join(text.split()))
