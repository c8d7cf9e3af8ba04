"""Rows to token ids: the only place where a text that is trained on, or answered, becomes tokens.

A prompt's ids are those of its own text, as sampling sees it. An answer's ids are those that it has in the whole text,
cut where the prompt ends; only where a token would stand across the cut are its letters encoded apart. Every answer
has one end. So a text has the same ids in every stage, in evaluation and in chat. Nothing here compares with the pad
id, which may equal EOS.

Rows come in the form of `examples.example`. Whatever a conversation says must stand in its text (see `complete`), and
every token must have a row in the model's embedding; else the row raises `BadRow`.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..engine.ends import end_ids, turn_end
from ..engine.templates import TemplateRefused, render
from ..errors import DataError
from .complete import missing
from .conversation import Messages, with_system
from .marks import Marked, mark, misplaced, unwritten_keys
from .rows import TOO_LONG, BadRow

log = logging.getLogger("rlhf_peft")

Tools = list[dict[str, Any]] | None
Compose = Callable[[Messages, Tools], str]

REFUSED = "refused by the chat template"
"""The kind of a bad row for which a template raises an error."""
SHAPES = 4096
"""Most shapes of conversations that an encoder remembers."""

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
        self._turn_end = turn_end(tokenizer, self.template_kwargs)
        self._problems: dict[tuple[Any, ...], tuple[str | None, list[str]]] = {}

    # --- examples ---

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of an example's prompt, ready to be continued by an answer.

        Without a prompt, what the tokenizer puts before every text (perhaps nothing).
        """
        prompt, tools = self._prompt(row), row.get("tools")
        if isinstance(prompt, str):
            return self._known(self._started(prompt))
        return self._known(self._tokens(self._written(self._prompt_text, prompt, tools)[0]))

    def answers(self, row: Mapping[str, Any], *names: str) -> tuple[list[int], list[list[int]]]:
        """Ids of an example's prompt, and of each of its answers with its end.

        Args:
            row: an example with a prompt, or none.
            names: of the answers' columns.

        Raises:
            BadRow: prompt and answer are longer than `max_length`; see also the class.
        """
        prompt, tools = self._prompt(row), row.get("tools")
        if isinstance(prompt, str):
            ids = self._known(self._started(prompt))
            answers = [self._continued(prompt, prompt + row[name], ids, self.start) for name in names]
        else:
            before = self._written(self._prompt_text, prompt, tools)[0]
            ids = self._known(self._tokens(before))
            texts = [self._whole(before, prompt, row[name], tools) for name in names]
            answers = [self._continued(before, text, ids) for text in texts]
        ended = [self._known(self._ended(answer)) for answer in answers]
        return ids, [self._fitted(ids, answer, name) for answer, name in zip(ended, names, strict=True)]

    def pair(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Ids of prompt and chosen, and of prompt and rejected answer; both begin with `prompt(row)`."""
        prompt, (chosen, rejected) = self.answers(row, "chosen", "rejected")
        return [*prompt, *chosen], [*prompt, *rejected]

    def completion(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of a demonstration: prompt and completion, a whole conversation, or a text, with its end."""
        return self.demonstration(row)[0]

    def demonstration(
        self, row: Mapping[str, Any], *, completion_only: bool = False, assistant_only: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids of a demonstration, and which of them are trained on.

        Args:
            row: an example with prompt and completion, with messages, or with text.
            completion_only: not on the prompt.
            assistant_only: only on what the assistant says, in rows of messages.

        Raises:
            BadRow: the template neither marks the assistant's turns nor lets them be found.
        """
        if "messages" in row:
            return self._conversation(
                with_system(row["messages"], self.system), row.get("tools"), assistant_only
            )
        if "completion" in row:
            prompt, (answer,) = self.answers(row, "completion")
            return [*prompt, *answer], [not completion_only] * len(prompt) + [True] * len(answer)
        prompt, (answer,) = self.answers({"text": row["text"]}, "text")
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
        found, self.notes = sorted(self.notes), set()
        return found

    # --- prompt and answer ---

    def _prompt(self, row: Mapping[str, Any]) -> str | Messages:
        prompt = row.get("prompt") or ""
        return prompt if isinstance(prompt, str) else with_system(prompt, self.system)

    def _whole(self, before: str, prompt: Messages, answer: Messages, tools: Tools) -> str:
        """The text of a prompt and its answer; it begins with the prompt's own text."""

        def compose(messages: Messages, tools: Tools) -> str:
            return self._answered(messages[: len(prompt)], messages[len(prompt) :], tools)

        text, _ = self._written(compose, [*prompt, *self._unended(answer)], tools)
        if not text.startswith(before):
            raise rewritten()
        return text

    def _answered(self, prompt: Messages, answer: Messages, tools: Tools) -> str:
        """The text of a prompt, as sampling sees it, and of its answer."""
        before, whole = self._prompt_text(prompt, tools), self._render(joined(prompt, answer), tools)
        return whole if whole.startswith(before) else before + self._after(before, whole, prompt, answer, tools)

    def _after(self, before: str, whole: str, prompt: Messages, answer: Messages, tools: Tools) -> str:
        """The answer as the template writes it, where the template changes the prompt once it is answered."""
        self.notes.add(
            "hold a prompt that the chat template writes differently once it is answered; answers are put after the "
            "prompt alone, as in sampling (model.chat_template_kwargs may make the two agree)"
        )
        # The answer's first text stands where its mark would stand; its turn begins where the two texts part.
        marked = mark(answer)
        other = self._render(joined(prompt, marked.messages), tools)
        first = min((other.find(m.text) for m in marked.marks if m.text in other), default=-1)
        if first < 0 or not whole.startswith(other[:first]):
            raise rewritten()
        asked = self._render(prompt, tools) if prompt[-1]["role"] != "assistant" else ""
        floor = agreeing(asked, whole)
        start = max(floor, min(agreeing(before, whole), first))
        if any(m.kind == "thought" for m in marked.marks if m.message == 0):
            thought = whole.find("<think>", floor, start)
            start = start if thought < 0 else thought
        for opening, closing in ("<>", "[]"):  # not in the middle of a tag that begins like one of the prompt's
            opened = whole.rfind(opening, floor, start)
            start = opened if opened > whole.rfind(closing, floor, start) else start
        return whole[start:]

    def _conversation(
        self, messages: Messages, tools: Tools, assistant_only: bool
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and which of them are trained on."""
        text, messages = self._written(self._render, self._unended(messages), tools)
        ids, offsets = self._with_offsets(text)
        mask = [True] * len(ids)
        if assistant_only:
            spans = self._assistant_spans(messages, tools, text)
            mask = [any(first <= start < last for first, last in spans) for start, _ in offsets]
        ended = self._known(self._ended(ids))
        mask = mask[: len(ended)] + [messages[-1]["role"] == "assistant" or not assistant_only] * (
            len(ended) - len(ids)
        )
        kept = self._fitted([], ended, "the row")
        return kept, mask[: len(kept)]

    def _assistant_spans(self, messages: Messages, tools: Tools, text: str) -> list[tuple[int, int]]:
        """Where the assistant's turns stand in a rendered conversation, each with its end."""
        spans = []
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._prompt_text(messages[:place], tools) if place else ""
            turn = self._render(messages[: place + 1], tools).rstrip()
            if not text.startswith(before) or not text.startswith(turn):
                raise BadRow(
                    "assistant_only_loss: the chat template writes earlier turns differently than later ones, so "
                    "that the assistant's turns cannot be told apart",
                    "whose assistant turns cannot be told apart",
                    "Set assistant_only_loss=false, give rows with prompt and completion, or use a template that "
                    "writes every turn alike",
                )
            spans.append((len(before), len(turn)))
        return spans

    # --- text ---

    def _prompt_text(self, prompt: Messages, tools: Tools) -> str:
        """The text that the model continues; an unfinished turn of the assistant is left open."""
        unfinished = bool(prompt) and prompt[-1]["role"] == "assistant"
        return self._render(
            prompt, tools, add_generation_prompt=not unfinished, continue_final_message=unfinished
        )

    def _render(self, messages: Messages, tools: Tools, **how: Any) -> str:
        """The text that the chat template makes of a conversation; BadRow where it refuses it."""
        if not self.tokenizer.chat_template:
            called = getattr(self.tokenizer, "name_or_path", None) or "the model"
            raise DataError(
                f"model.path: {called}: the rows are conversations, but the tokenizer has no chat template. "
                "Use a model with one, save a chat_template.jinja beside the tokenizer, or give rows of "
                "plain text."
            )
        try:
            return render(self.tokenizer, messages, tools=tools, **{**how, **self.template_kwargs})
        except TemplateRefused as error:
            raise BadRow(str(error), REFUSED) from error

    def _written(self, compose: Compose, messages: Messages, tools: Tools) -> tuple[str, Messages]:
        """The text of a conversation, and the conversation in the first form that the template writes whole.

        Raises:
            BadRow: the template refuses every form, or does not write everything once and in its place.
        """
        first: BadRow | None = None
        marked = mark(messages, tools)
        for place, form in enumerate(FORMS):
            version = form(messages)
            if place and version == messages:
                continue
            try:
                text = compose(version, tools)
                self._check_shape(compose, place, marked)
                self._check_text(text, messages, tools)
                return text, version
            except BadRow as bad:  # what a template leaves out says more than that it refuses another form
                first = bad if first is None or first.kind == REFUSED != bad.kind else first
        assert first is not None
        raise first

    def _check_shape(self, compose: Compose, form: int, marked: Marked) -> None:
        """BadRow unless everything in a conversation of this shape is written, once and in its place."""
        kind = (compose.__name__, form, marked.shape)
        if kind not in self._problems:
            if len(self._problems) >= SHAPES:
                self._problems.clear()
            try:
                text = compose(FORMS[form](marked.messages), marked.tools)
                self._problems[kind] = misplaced(text, marked), list(unwritten_keys(text, marked))
            except BadRow:  # a template may refuse the marks
                self._problems[kind] = None, []
        problem, keys = self._problems[kind]
        if problem is not None:
            raise changed(problem)
        self.notes |= {f"hold the key {key} in messages, which the chat template does not write" for key in keys}

    def _check_text(self, text: str, messages: Messages, tools: Tools) -> None:
        """BadRow unless everything that the conversation says stands in its text, and in its place."""
        lost, thoughts = missing(text, messages, tools)
        if thoughts:
            self.notes.add(
                "hold thoughts in earlier turns, which the chat template leaves out, as it does in use; they are "
                "not trained on"
            )
        if lost is not None:
            raise changed(f"{lost} does not stand in its text, or not in its place")

    def _unended(self, messages: Messages) -> Messages:
        """Messages of the assistant without an end that is written out in them, where the template writes one."""
        if self._turn_end is None:
            return messages
        ends = tuple(self.tokenizer.convert_ids_to_tokens(sorted(self.eos_ids)))
        made = []
        for message in messages:
            content = message["content"] or ""
            while message["role"] == "assistant" and content.rstrip().endswith(ends):
                last = next(end for end in ends if content.rstrip().endswith(end))
                content = content.rstrip().removesuffix(last)
            made.append({**message, "content": content} if content != (message["content"] or "") else message)
        return made

    # --- tokens ---

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and the letters that each of them stands for."""
        if self.tokenizer.is_fast:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return list(found["input_ids"]), list(found["offset_mapping"])
        ids = self._tokens(text)  # a tokenizer in Python knows no offsets; letters are counted instead
        ends = [len(self.tokenizer.decode(ids[: place + 1])) for place in range(len(ids))]
        return ids, list(zip([0, *ends], ends, strict=False))

    def _continued(self, before: str, whole: str, ids: list[int], start: Sequence[int] = ()) -> list[int]:
        """Ids of what follows the text `before` in `whole`.

        Args:
            before: the prompt's text.
            whole: the same text and the answer's.
            ids: of `before`, perhaps after `start`.
            start: what stands before every text.
        """
        prompt = ids[len(start) :] if ids[: len(start)] == list(start) else ids
        every, offsets = self._with_offsets(whole)
        size, cut = len(prompt), len(before)
        if every[:size] == prompt and (size == len(every) or offsets[size][0] >= cut):
            return every[size:]
        first = next((place for place, (begin, _) in enumerate(offsets) if begin >= cut), len(every))
        across = whole[cut : offsets[first][0] if first < len(every) else len(whole)]
        return [*self._apart(across), *every[first:]] if across else every[first:]

    def _apart(self, text: str) -> list[int]:
        """Ids of a text that continues another, without what a tokenizer puts at a beginning."""
        for lead in LEADS:
            ids, offsets = self._with_offsets(lead + text)
            size = sum(end <= 1 for _, end in offsets)
            if size < len(ids) and offsets[size][0] == 1:
                return ids[size:]
        return self._tokens(text)

    def _start(self) -> list[int]:
        """What the tokenizer puts before every text (BOS); what it puts after one is never wanted."""
        bare = self._tokens("a")
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        for place in range(len(full) - len(bare) + 1):
            if full[place : place + len(bare)] == bare:
                return full[:place]
        return []

    def _started(self, text: str) -> list[int]:
        ids = self._tokens(text) if text else []
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
        last = next((place for place in range(len(ids) - 1, -1, -1) if ids[place] in self.eos_ids), None)
        return None if last is None or self.tokenizer.decode(ids[last + 1 :]).strip() else last

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
        beyond = next((i for i in ids if self.vocab_size is not None and i >= self.vocab_size), None)
        if beyond is not None:
            raise BadRow(
                f"it holds the token {self.tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond:,}), which the "
                f"model's embedding of {self.vocab_size:,} rows does not have",
                "with a token that the model does not have",
            )
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown not in self.eos_ids and unknown in ids:
            self.notes.add(
                f"hold letters that the tokenizer does not know; they become {self.tokenizer.unk_token}"
            )
        return ids


def joined(prompt: Messages, answer: Messages) -> Messages:
    """A conversation and its answer; an unfinished turn of the assistant and what continues it are one turn."""
    last, first = prompt[-1], answer[0]
    if last["role"] != "assistant" or last.get("tool_calls") or first["role"] != "assistant":
        return [*prompt, *answer]
    both = {**last, **first, "content": (last["content"] or "") + (first["content"] or "")}
    return [*prompt[:-1], both, *answer[1:]]


def filled_contents(messages: Messages) -> Messages:
    """A conversation with empty contents in the place of None."""
    return [{**m, "content": m["content"] or ""} for m in messages]


def bare_calls(messages: Messages) -> Messages:
    """A conversation whose tool calls without text have the content None."""
    return [{**m, "content": m["content"] or None} if m.get("tool_calls") else m for m in messages]


def text_arguments(messages: Messages) -> Messages:
    """A conversation whose tool calls have their arguments as JSON text, and empty contents."""
    return [as_text(m) for m in filled_contents(messages)]


def bare_text_calls(messages: Messages) -> Messages:
    """The same, with the content None where there are only tool calls."""
    return bare_calls(text_arguments(messages))


FORMS: tuple[Callable[[Messages], Messages], ...] = (
    lambda messages: messages,
    filled_contents,
    bare_calls,
    text_arguments,
    bare_text_calls,
)
"""A conversation as templates may want it; the first that is written whole is taken."""


def agreeing(first: str, second: str) -> int:
    """How many letters two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def rewritten() -> BadRow:
    """What is wrong with a row whose answer cannot be found in the template's text."""
    return BadRow(
        "the chat template rewrites the answer beyond recognition",
        "rewritten by the template",
        "Set model.chat_template_kwargs so that a prompt is written alike with and without its answer",
    )


def changed(problem: str) -> BadRow:
    """What is wrong with a row that the template does not write as it is."""
    return BadRow(
        f"the chat template would change what is trained on: {problem}",
        "that the chat template does not write whole",
        "Change the row, or use a model whose chat template knows all of it",
    )


def as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose tool calls have their arguments as JSON text."""

    def written(call: Mapping[str, Any]) -> dict[str, Any]:
        if "function" in call:
            return {**call, "function": written(call["function"])}
        return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)}

    calls = message.get("tool_calls")
    return {**message, "tool_calls": [written(call) for call in calls]} if calls else dict(message)
