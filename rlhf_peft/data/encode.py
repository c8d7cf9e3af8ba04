"""Encodes rows to token ids: the only place where a text that is trained on, or answered, becomes tokens.

A prompt's ids are those of its own text, as sampling sees it. An answer's ids are those that it has in the whole text,
cut where the prompt ends. Only if a token would span that cut, its characters are encoded separately. Every answer has
exactly one end token. So a text has the same ids in every stage, in evaluation and in chat. Nothing here compares with
the pad id, which may equal EOS.

Rows come in the form of `examples.example`. Everything in a conversation must appear in its text (see `completeness`),
and every token must have a row in the model's embedding; otherwise `BadRow` is raised.

Each kind of row is encoded by a generator of steps (see `tokens`), which can take part in a batch; the method of the
same name without `_steps` encodes one row alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..engine.ends import end_ids
from .chat_text import Tools, Writer
from .conversation import Messages, with_system
from .rows import TOO_LONG, BadRow
from .tokenizer_notes import TokenizerNotes
from .tokens import Steps, Tokens, encode_one, tokenize
from .word_borders import cuts_words_at_blanks, last_border

log = logging.getLogger("rlhf_peft")


LEADS = ("\n", ".", "a", "0")
"""Characters put before a text to encode it as a continuation; one of them stays a separate token."""


class Encoder:
    """Encodes examples with one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template_kwargs: passed to the chat template.
        system: system message to put before conversations that have none.
        max_length: most tokens of a row, prompt and answer; None: no limit.
        truncation: cut the end of an answer that is too long, instead of refusing the row.
        eos_ids: ids that end an answer; default: `end_ids` of the tokenizer.
        vocab_size: number of rows of the model's embedding; None: not known.

    Attributes:
        notes: remarks on the rows encoded so far that are no errors; see `take_notes`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        eos_ids: Collection[int] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(chat_template_kwargs or {})
        self.system = system
        self.max_length = max_length
        self.truncation = truncation
        self.vocab_size = vocab_size
        self.eos_id: int | None = tokenizer.eos_token_id
        self.eos_ids = frozenset(end_ids(tokenizer, self.template_kwargs) if eos_ids is None else eos_ids)
        self.start = self._start()
        self.notes: set[str] = set()
        ends = tokenizer.convert_ids_to_tokens(sorted(self.eos_ids))
        self._writer = Writer(tokenizer, self.template_kwargs, [end for end in ends if end])
        self._tokenizer_notes = TokenizerNotes(tokenizer, self.eos_ids)
        self._cuts_words = cuts_words_at_blanks(tokenizer)

    # --- examples ---

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of an example's prompt, to be continued by an answer; see `prompt_steps`."""
        return encode_one(self.tokenizer, self.prompt_steps(row))

    def answers(self, row: Mapping[str, Any], *names: str) -> tuple[list[int], list[list[int]]]:
        """Ids of an example's prompt, and of each of its answers with its end; see `answers_steps`."""
        return encode_one(self.tokenizer, self.answers_steps(row, *names))

    def demonstration(
        self, row: Mapping[str, Any], *, completion_only: bool = False, assistant_only: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids of a demonstration, and a mask of those that are trained on; see `demonstration_steps`."""
        steps = self.demonstration_steps(row, completion_only=completion_only, assistant_only=assistant_only)
        return encode_one(self.tokenizer, steps)

    def pair(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Ids of prompt and chosen, and of prompt and rejected answer; both begin with `prompt(row)`."""
        prompt, (chosen, rejected) = self.answers(row, "chosen", "rejected")
        return [*prompt, *chosen], [*prompt, *rejected]

    def completion(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of a demonstration: prompt and completion, a whole conversation, or a text, with its end."""
        return self.demonstration(row)[0]

    def prompt_steps(self, row: Mapping[str, Any]) -> Steps[list[int]]:
        """Ids of an example's prompt, to be continued by an answer.

        Without a prompt, they are the tokens that the tokenizer puts before every text (perhaps none).
        """
        prompt, tools = self._prompt(row), row.get("tools")
        plain = isinstance(prompt, str)
        text = prompt if isinstance(prompt, str) else self._writer.prompt(prompt, tools)
        (tokens,) = yield [text]
        ids = self._with_start(text, tokens.ids) if plain else tokens.ids
        self.notes |= self._tokenizer_notes.changed(text, ids[len(self.start) :] if plain else ids)
        if not isinstance(prompt, str):
            self.notes |= self._tokenizer_notes.special(prompt)
        return self._in_vocabulary(ids)

    def answers_steps(self, row: Mapping[str, Any], *names: str) -> Steps[tuple[list[int], list[list[int]]]]:
        """Ids of an example's prompt, and of each of its answers with its end.

        Args:
            row: an example, with or without a prompt.
            names: columns of the answers.

        Raises:
            BadRow: prompt and answer are longer than `max_length`, or another reason that the module names.
        """
        prompt, tools = self._prompt(row), row.get("tools")
        prompt_error: BadRow | None = None
        if isinstance(prompt, str):
            before, start = prompt, self.start
            texts = [prompt + row[name] for name in names]
        else:
            before, start, texts = self._writer.prompt(prompt, tools), [], []
            try:
                texts = [self._writer.prompt_with_answer(before, prompt, row[name], tools) for name in names]
            except BadRow as bad:  # an error about the prompt's own tokens comes first
                prompt_error = bad
        # The prompt is encoded once: of each whole text, the tokenizer gets only what follows the last safe border.
        cut = last_border(before) if self._cuts_words else 0
        first, *rests = yield [before, *(text[cut:] for text in texts)]
        ids = self._in_vocabulary(
            self._with_start(before, first.ids) if isinstance(prompt, str) else first.ids
        )
        if prompt_error is not None:
            raise prompt_error
        answers = []
        for text, rest in zip(texts, rests, strict=True):
            tokens = first.joined(cut, rest) if cut else rest
            answers.append((yield from self._continued(before, text, tokens, ids, start)))
        if not isinstance(prompt, str):
            self.notes |= self._tokenizer_notes.special(prompt, *(row[name] for name in names))
        ended = [self._in_vocabulary(self._with_one_end(answer)) for answer in answers]
        if isinstance(prompt, str) and names != ("text",):
            self.notes |= self._tokenizer_notes.ends(ended)
        return ids, [
            self._cut_to_length(ids, answer, name) for answer, name in zip(ended, names, strict=True)
        ]

    def demonstration_steps(
        self, row: Mapping[str, Any], *, completion_only: bool = False, assistant_only: bool = False
    ) -> Steps[tuple[list[int], list[bool]]]:
        """Ids of a demonstration, and a mask of those that are trained on.

        Args:
            row: an example with prompt and completion, with messages, or with text.
            completion_only: do not train on the prompt.
            assistant_only: train only on the assistant's messages, in rows of messages.

        Raises:
            BadRow: the assistant's messages cannot be located in the template's text.
        """
        if "messages" in row:
            messages = with_system(row["messages"], self.system)
            return (yield from self._conversation(messages, row.get("tools"), assistant_only))
        if "completion" in row:
            prompt, (answer,) = yield from self.answers_steps(row, "completion")
            return [*prompt, *answer], [not completion_only] * len(prompt) + [True] * len(answer)
        prompt, (answer,) = yield from self.answers_steps({"text": row["text"]}, "text")
        return [*prompt, *answer], [True] * (len(prompt) + len(answer))

    def text(self, ids: Sequence[int]) -> str:
        """Decode ids to text, without special tokens."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def check_length(self, ids: Sequence[int], what: str = "the row", extra: int = 0) -> None:
        """Raise BadRow if `ids`, with `extra` tokens to be generated after them, are longer than `max_length`."""
        if self.max_length is None or len(ids) + extra <= self.max_length:
            return
        more = f", {len(ids) + extra:,} with max_new_tokens={extra}" if extra else ""
        raise BadRow(
            f"{what} has {len(ids):,} tokens{more}; the limit is model.max_length={self.max_length}",
            TOO_LONG,
            "Shorten it, set a larger model.max_length where the model allows it",
        )

    def without_limit(self) -> Encoder:
        """A copy of the encoder without a limit of length."""
        other = copy.copy(self)
        other.max_length = None
        return other

    def take_notes(self) -> list[str]:
        """Return the remarks since the last call, each once, and forget them."""
        if not self.notes and not self._writer.notes:
            return []
        notes = sorted(self.notes | self._writer.notes)
        self.notes.clear()
        self._writer.notes.clear()
        return notes

    # --- prompt and answer ---

    def _prompt(self, row: Mapping[str, Any]) -> str | Messages:
        """The row's prompt, with the system message before it."""
        prompt = row.get("prompt") or ""
        return prompt if isinstance(prompt, str) else with_system(prompt, self.system)

    def _conversation(
        self, messages: Messages, tools: Tools, assistant_only: bool
    ) -> Steps[tuple[list[int], list[bool]]]:
        """Ids of a whole conversation, and a mask of those that are trained on."""
        self.notes |= self._tokenizer_notes.special(messages)
        text, messages = self._writer.conversation(messages, tools)
        (tokens,) = yield [text]
        ids = tokens.ids
        self.notes |= self._tokenizer_notes.changed(text, ids)
        mask = [True] * len(ids)
        if assistant_only:
            spans = self._writer.assistant_spans(messages, tools, text)
            mask = [any(first <= start < last for first, last in spans) for start, _ in tokens.offsets]
        ended = self._in_vocabulary(self._with_one_end(ids))
        mask = mask[: len(ended)] + [messages[-1]["role"] == "assistant" or not assistant_only] * (
            len(ended) - len(ids)
        )
        fitted = self._cut_to_length([], ended, "the row")
        return fitted, mask[: len(fitted)]

    # --- tokens ---

    def _continued(
        self, before: str, whole: str, tokens: Tokens, ids: list[int], start: Sequence[int] = ()
    ) -> Steps[list[int]]:
        """Ids of the part of `whole` that follows the text `before`.

        Args:
            before: text of the prompt.
            whole: text of the prompt and the answer.
            tokens: tokens of `whole`.
            ids: ids of `before`, perhaps after `start`.
            start: ids that the tokenizer puts before every text.
        """
        prompt = ids[len(start) :] if ids[: len(start)] == list(start) else ids
        whole_ids = tokens.ids
        self.notes |= self._tokenizer_notes.changed(whole, whole_ids)
        size, cut = len(prompt), len(before)
        if whole_ids[:size] == prompt and (size == len(whole_ids) or tokens.start(size) >= cut):
            return whole_ids[size:]
        offsets = tokens.offsets
        first = next((index for index, (begin, _) in enumerate(offsets) if begin >= cut), len(whole_ids))
        crossing = whole[cut : offsets[first][0] if first < len(whole_ids) else len(whole)]
        if not crossing:
            return whole_ids[first:]
        crossing_ids = yield from self._continuation(crossing)
        return [*crossing_ids, *whole_ids[first:]]

    def _continuation(self, text: str) -> Steps[list[int]]:
        """Ids of a text that continues another, without the tokens that a tokenizer adds at a beginning."""
        for lead in LEADS:
            (tokens,) = yield [lead + text]
            offsets = tokens.offsets
            size = sum(end <= 1 for _, end in offsets)
            if size < len(offsets) and offsets[size][0] == 1:
                return tokens.ids[size:]
        (tokens,) = yield [text]
        return tokens.ids

    def _start(self) -> list[int]:
        """Ids that the tokenizer puts before every text (BOS); those that it puts after a text are not used."""
        (bare,) = (tokens.ids for tokens in tokenize(self.tokenizer, ["a"]))
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        for index in range(len(full) - len(bare) + 1):
            if full[index : index + len(bare)] == bare:
                return full[:index]
        return []

    def _with_start(self, text: str, ids: list[int]) -> list[int]:
        """The ids of a text, preceded by those that the tokenizer puts before every text."""
        ids = ids if text else []
        return ids if self.start and ids[: len(self.start)] == self.start else [*self.start, *ids]

    def _with_one_end(self, ids: list[int]) -> list[int]:
        """The ids with one end token: blanks after it are cut, and EOS is added where there is none."""
        last = self._last_end(ids)
        if last is None:
            return ids if self.eos_id is None else [*ids, self.eos_id]
        while (before := self._last_end(ids[:last])) is not None:
            last = before
        return ids[: last + 1]

    def _last_end(self, ids: list[int]) -> int | None:
        """Index of the end token that only blanks follow; None where there is none."""
        if self.eos_ids.isdisjoint(ids):
            return None
        last = next(index for index in range(len(ids) - 1, -1, -1) if ids[index] in self.eos_ids)
        after = ids[last + 1 :]
        return None if after and self.tokenizer.decode(after).strip() else last

    def _cut_to_length(self, prompt: list[int], answer: list[int], name: str) -> list[int]:
        """The answer, cut at `max_length` if truncation is on; else raises BadRow for an answer that is too long."""
        what = f"the {name} answer with its prompt" if prompt and name != "completion" else "the row"
        room = None if self.max_length is None else self.max_length - len(prompt)
        if room is None or len(answer) <= room:
            return answer
        if not self.truncation or room < 1:
            self.check_length([*prompt, *answer], what)
        self.notes.add(f"are longer than model.max_length={self.max_length}, and their ends are cut")
        return answer[:room]

    def _in_vocabulary(self, ids: list[int]) -> list[int]:
        """The ids; raises BadRow if the model's embedding lacks one of them."""
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            beyond = next(i for i in ids if i >= self.vocab_size)
            raise BadRow(
                f"it holds the token {self.tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond:,}), which the "
                f"model's embedding of {self.vocab_size:,} rows does not have",
                "with a token that the model does not have",
            )
        self.notes |= self._tokenizer_notes.unknown(ids)
        return ids
