"""Finds the place where a text can be cut so that the tokens of both parts together are those of the whole text.

A byte-level BPE tokenizer first cuts a text into words with a regular expression, and then encodes each word alone. The
expressions known here always cut between a letter and a blank, whatever stands before and after: in none of them may a
blank follow a letter within a word, and none of them looks back. So a prompt need not be encoded again with each of its
answers. Texts of all other tokenizers are not cut.
"""

from __future__ import annotations

import json
from typing import Any

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
EXPRESSIONS = frozenset(
    CONTRACTIONS + rest
    for rest in (
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
"""Known expressions for words: of Qwen 2 and 3, Llama 3, and Qwen 3.5. That of GPT-2 is a part of `ByteLevel`."""


def cuts_words_at_blanks(tokenizer: Any) -> bool:
    """Whether the tokens of any text are those of its parts, if it is cut at `last_border`.

    This holds for a fast BPE tokenizer of transformers that finds words with one of the known expressions. Its
    normalizer must be NFC or none. Its added tokens, which are found before words are, must not reach over a border:
    they hold no blanks, take in no blanks after them, and do not depend on the letters beside them.

    Args:
        tokenizer: a transformers tokenizer.
    """
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return False
    backend = tokenizer.backend_tokenizer
    if type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return False
    if _settings(backend.normalizer) not in (None, {"type": "NFC"}):
        return False
    for token in backend.get_added_tokens_decoder().values():
        if token.single_word or token.rstrip or token.content.split() != [token.content]:
            return False
    return _cuts_at_blanks(_settings(backend.pre_tokenizer))


def _settings(part: Any) -> dict[str, Any] | None:
    """The settings of a normalizer or pre-tokenizer; None if the tokenizer has none."""
    return None if part is None else dict(json.loads(part.__getstate__()))


def _cuts_at_blanks(settings: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer consists of known parts, of which one cuts a text into words."""
    if settings is None:
        return False
    cuts = False
    for part in settings["pretokenizers"] if settings["type"] == "Sequence" else [settings]:
        if part["type"] == "ByteLevel" and not part["add_prefix_space"]:
            cuts |= part["use_regex"]
        elif part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            if part["pattern"].get("Regex") not in EXPRESSIONS:
                return False
            cuts = True
        elif part["type"] != "Digits":
            return False
    return cuts


def last_border(text: str) -> int:
    """Index of the last blank that stands between two ASCII letters; 0 if there is none."""
    index = text.rfind(" ")
    while index > 0:
        before, after = text[index - 1], text[index + 1 : index + 2]
        if before.isascii() and before.isalpha() and after.isascii() and after.isalpha():
            return index
        index = text.rfind(" ", 0, index)
    return 0


__all__ = ["cuts_words_at_blanks", "last_border"]
