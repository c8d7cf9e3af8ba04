"""Rows to token ids: the only place where a text that is trained on, or answered, becomes tokens.

A prompt's ids are those of its own text, as sampling sees it. An answer's ids are those that it has in the whole text,
cut where the prompt ends; only where a token would stand across the cut are its letters encoded apart. Every answer
has one end. So a text has the same ids in every stage, in evaluation and in chat. Nothing here compares with the pad
id, which may equal EOS.

Rows come in the form of `examples.example`. Whatever a conversation says must stand in its text (see `complete`), and
every token must have a row in the model's embedding; else the row raises `BadRow`.

Each kind of row is encoded by steps (see `tokens`), which take part in a batch; the method of the same name without
`_steps` encodes one row alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..engine.ends import end_ids
from .conversation import Messages, with_system
from .letters import Letters
from .rows import TOO_LONG, BadRow
from .tokens import Steps, Tokens, alone, tokenize
from .written import Tools, Writer

log = logging.getLogger("rlhf_peft")


LEADS = ("\n", ".", "a", "0")
"""Letters before a text that is to be encoded as it continues another; one of them stays a token of its own."""


class Encoder:
    """Encodes examples for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template_kwargs: passed to the chat template.
        system: put before conversations that have no system message.
        max_length: most tokens of a row, prompt and answer; None: no limit.
        truncation: cut the end of an answer that is too long, instead of refusing the row.
        eos_ids: ids that end an answer; default: `end_ids` of the tokenizer.
        vocab_size: rows of the model's embedding; None: not known.

    Attributes:
        notes: what was found in the rows encoded so far that is no error; see `take_notes`.
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
        self._letters = Letters(tokenizer, self.eos_ids)

    # --- examples ---

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of an example's prompt, ready to be continued by an answer; see `prompt_steps`."""
        return alone(self.tokenizer, self.prompt_steps(row))

    def answers(self, row: Mapping[str, Any], *names: str) -> tuple[list[int], list[list[int]]]:
        """Ids of an example's prompt, and of each of its answers with its end; see `answers_steps`."""
        return alone(self.tokenizer, self.answers_steps(row, *names))

    def demonstration(
        self, row: Mapping[str, Any], *, completion_only: bool = False, assistant_only: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids of a demonstration, and which of them are trained on; see `demonstration_steps`."""
        steps = self.demonstration_steps(row, completion_only=completion_only, assistant_only=assistant_only)
        return alone(self.tokenizer, steps)

    def pair(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Ids of prompt and chosen, and of prompt and rejected answer; both begin with `prompt(row)`."""
        prompt, (chosen, rejected) = self.answers(row, "chosen", "rejected")
        return [*prompt, *chosen], [*prompt, *rejected]

    def completion(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of a demonstration: prompt and completion, a whole conversation, or a text, with its end."""
        return self.demonstration(row)[0]

    def prompt_steps(self, row: Mapping[str, Any]) -> Steps[list[int]]:
        """Ids of an example's prompt, ready to be continued by an answer.

        Without a prompt, what the tokenizer puts before every text (perhaps nothing).
        """
        prompt, tools = self._prompt(row), row.get("tools")
        plain = isinstance(prompt, str)
        text = prompt if isinstance(prompt, str) else self._writer.prompt(prompt, tools)
        (tokens,) = yield [text]
        ids = self._started(text, tokens.ids) if plain else tokens.ids
        self.notes |= self._letters.changed(text, ids[len(self.start) :] if plain else ids)
        if not isinstance(prompt, str):
            self.notes |= self._letters.special(prompt)
        return self._known(ids)

    def answers_steps(self, row: Mapping[str, Any], *names: str) -> Steps[tuple[list[int], list[list[int]]]]:
        """Ids of an example's prompt, and of each of its answers with its end.

        Args:
            row: an example with a prompt, or none.
            names: of the answers' columns.

        Raises:
            BadRow: prompt and answer are longer than `max_length`; see also the class.
        """
        prompt, tools = self._prompt(row), row.get("tools")
        refused: BadRow | None = None
        if isinstance(prompt, str):
            before, start = prompt, self.start
            texts = [prompt + row[name] for name in names]
        else:
            before, start, texts = self._writer.prompt(prompt, tools), [], []
            try:
                texts = [self._writer.answered(before, prompt, row[name], tools) for name in names]
            except BadRow as bad:  # what is wrong with the prompt's own tokens is said first
                refused = bad
        first, *whole = yield [before, *texts]
        ids = self._known(self._started(before, first.ids) if isinstance(prompt, str) else first.ids)
        if refused is not None:
            raise refused
        answers = []
        for text, tokens in zip(texts, whole, strict=True):
            answers.append((yield from self._continued(before, text, tokens, ids, start)))
        if not isinstance(prompt, str):
            self.notes |= self._letters.special(prompt, *(row[name] for name in names))
        ended = [self._known(self._ended(answer)) for answer in answers]
        if isinstance(prompt, str) and names != ("text",):
            self.notes |= self._letters.ends(ended)
        return ids, [self._fitted(ids, answer, name) for answer, name in zip(ended, names, strict=True)]

    def demonstration_steps(
        self, row: Mapping[str, Any], *, completion_only: bool = False, assistant_only: bool = False
    ) -> Steps[tuple[list[int], list[bool]]]:
        """Ids of a demonstration, and which of them are trained on.

        Args:
            row: an example with prompt and completion, with messages, or with text.
            completion_only: not on the prompt.
            assistant_only: only on what the assistant says, in rows of messages.

        Raises:
            BadRow: the template neither marks the assistant's turns nor lets them be found.
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
        """Text of some ids, special tokens left out."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def check_length(self, ids: Sequence[int], what: str = "the row", extra: int = 0) -> None:
        """Raise BadRow if ids, and `extra` tokens to be written after them, are longer than `max_length`."""
        if self.max_length is None or len(ids) + extra <= self.max_length:
            return
        more = f", {len(ids) + extra:,} with max_new_tokens={extra}" if extra else ""
        raise BadRow(
            f"{what} has {len(ids):,} tokens{more}; the limit is model.max_length={self.max_length}",
            TOO_LONG,
            "Shorten it, set a larger model.max_length where the model allows it",
        )

    def without_limit(self) -> Encoder:
        """The same encoder for rows of any length."""
        other = copy.copy(self)
        other.max_length = None
        return other

    def take_notes(self) -> list[str]:
        """What was found since the last call, each once."""
        if not self.notes and not self._writer.notes:
            return []
        found = sorted(self.notes | self._writer.notes)
        self.notes.clear()
        self._writer.notes.clear()
        return found

    # --- prompt and answer ---

    def _prompt(self, row: Mapping[str, Any]) -> str | Messages:
        prompt = row.get("prompt") or ""
        return prompt if isinstance(prompt, str) else with_system(prompt, self.system)

    def _conversation(
        self, messages: Messages, tools: Tools, assistant_only: bool
    ) -> Steps[tuple[list[int], list[bool]]]:
        """Ids of a whole conversation, and which of them are trained on."""
        self.notes |= self._letters.special(messages)
        text, messages = self._writer.conversation(messages, tools)
        (tokens,) = yield [text]
        ids = tokens.ids
        self.notes |= self._letters.changed(text, ids)
        mask = [True] * len(ids)
        if assistant_only:
            spans = self._writer.assistant_spans(messages, tools, text)
            mask = [any(first <= start < last for first, last in spans) for start, _ in tokens.offsets]
        ended = self._known(self._ended(ids))
        mask = mask[: len(ended)] + [messages[-1]["role"] == "assistant" or not assistant_only] * (
            len(ended) - len(ids)
        )
        kept = self._fitted([], ended, "the row")
        return kept, mask[: len(kept)]

    # --- tokens ---

    def _continued(
        self, before: str, whole: str, tokens: Tokens, ids: list[int], start: Sequence[int] = ()
    ) -> Steps[list[int]]:
        """Ids of what follows the text `before` in `whole`.

        Args:
            before: the prompt's text.
            whole: the same text and the answer's.
            tokens: of `whole`.
            ids: of `before`, perhaps after `start`.
            start: what stands before every text.
        """
        prompt = ids[len(start) :] if ids[: len(start)] == list(start) else ids
        every = tokens.ids
        self.notes |= self._letters.changed(whole, every)
        size, cut = len(prompt), len(before)
        if every[:size] == prompt and (size == len(every) or tokens.start(size) >= cut):
            return every[size:]
        offsets = tokens.offsets
        first = next((place for place, (begin, _) in enumerate(offsets) if begin >= cut), len(every))
        across = whole[cut : offsets[first][0] if first < len(every) else len(whole)]
        if not across:
            return every[first:]
        apart = yield from self._apart(across)
        return [*apart, *every[first:]]

    def _apart(self, text: str) -> Steps[list[int]]:
        """Ids of a text that continues another, without what a tokenizer puts at a beginning."""
        for lead in LEADS:
            (tokens,) = yield [lead + text]
            offsets = tokens.offsets
            size = sum(end <= 1 for _, end in offsets)
            if size < len(offsets) and offsets[size][0] == 1:
                return tokens.ids[size:]
        (tokens,) = yield [text]
        return tokens.ids

    def _start(self) -> list[int]:
        """What the tokenizer puts before every text (BOS); what it puts after one is never wanted."""
        (bare,) = (tokens.ids for tokens in tokenize(self.tokenizer, ["a"]))
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        for place in range(len(full) - len(bare) + 1):
            if full[place : place + len(bare)] == bare:
                return full[:place]
        return []

    def _started(self, text: str, ids: list[int]) -> list[int]:
        """The ids of a text after what the tokenizer puts before every text; a text that is empty has none."""
        ids = ids if text else []
        return ids if self.start and ids[: len(self.start)] == self.start else [*self.start, *ids]

    def _ended(self, ids: list[int]) -> list[int]:
        """The ids with one end: blanks after it are cut; EOS follows where there is none."""
        last = self._last_end(ids)
        if last is None:
            return ids if self.eos_id is None else [*ids, self.eos_id]
        while (before := self._last_end(ids[:last])) is not None:
            last = before
        return ids[: last + 1]

    def _last_end(self, ids: list[int]) -> int | None:
        """Where the end stands that only blanks follow; None where there is none."""
        if self.eos_ids.isdisjoint(ids):
            return None
        last = next(place for place in range(len(ids) - 1, -1, -1) if ids[place] in self.eos_ids)
        after = ids[last + 1 :]
        return None if after and self.tokenizer.decode(after).strip() else last

    def _fitted(self, prompt: list[int], answer: list[int], name: str) -> list[int]:
        """The answer, cut at `max_length` where the recipe says so; else BadRow where it is too long."""
        what = f"the {name} answer with its prompt" if prompt and name != "completion" else "the row"
        room = None if self.max_length is None else self.max_length - len(prompt)
        if room is None or len(answer) <= room:
            return answer
        if not self.truncation or room < 1:
            self.check_length([*prompt, *answer], what)
        self.notes.add(f"are longer than model.max_length={self.max_length}, and their ends are cut")
        return answer[:room]

    def _known(self, ids: list[int]) -> list[int]:
        """The ids; BadRow where the model's embedding lacks one of them."""
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            beyond = next(i for i in ids if i >= self.vocab_size)
            raise BadRow(
                f"it holds the token {self.tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond:,}), which the "
                f"model's embedding of {self.vocab_size:,} rows does not have",
                "with a token that the model does not have",
            )
        self.notes |= self._letters.unknown(ids)
        return ids
