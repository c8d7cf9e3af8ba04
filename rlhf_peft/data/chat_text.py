"""Writes conversations as text with the chat template, and checks that the template writes all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

from ..engine.ends import turn_end
from ..engine.templates import TemplateRefused, render
from ..errors import DataError
from .completeness import missing
from .conversation import THOUGHTS, Messages
from .marks import Marked, mark, misplaced, plain_shape, unwritten_keys
from .rows import BadRow

Tools = list[dict[str, Any]] | None
Compose = Callable[[Messages, Tools], str]
Kind = tuple[str, int, Hashable]
"""The name of a `Compose`, an index in `FORMS`, and the shape of a conversation."""

REFUSED = "refused by the chat template"
"""`BadRow.kind` of a row for which the template raises an error."""
SHAPES = 4096
"""Most shapes of conversations whose results are remembered."""


class Writer:
    """Writes conversations with the chat template; raises `BadRow` if the template does not write all of one.

    Args:
        tokenizer: a transformers tokenizer.
        template_kwargs: passed to the chat template.
        ends: tokens that end an answer.

    Attributes:
        notes: remarks on the conversations so far that are no errors.
    """

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any], ends: Collection[str]) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs)
        self.ends = tuple(ends) if turn_end(tokenizer, template_kwargs) is not None else ()
        self.notes: set[str] = set()
        self._problems: dict[Kind, tuple[str | None, list[str]]] = {}
        self._latest: tuple[Messages, Tools, str] | None = None

    def prompt(self, prompt: Messages, tools: Tools) -> str:
        """Text of a prompt, to be continued by an answer."""
        return self._write(self._prompt_text, prompt, tools)[0]

    def conversation(self, messages: Messages, tools: Tools) -> tuple[str, Messages]:
        """Text of a whole conversation, and the variant of the conversation that the template writes completely."""
        return self._write(self._render, self._without_ends(messages), tools)

    def prompt_with_answer(self, before: str, prompt: Messages, answer: Messages, tools: Tools) -> str:
        """Text of a prompt and its answer; it begins with the prompt's own text."""

        def compose(messages: Messages, tools: Tools) -> str:
            return self._prompt_with_answer(messages[: len(prompt)], messages[len(prompt) :], tools)

        text, _ = self._write(compose, [*prompt, *self._without_ends(answer)], tools)
        if not text.startswith(before):
            raise rewritten_error()
        return text

    def _prompt_with_answer(self, prompt: Messages, answer: Messages, tools: Tools) -> str:
        """Text of a prompt, as sampling sees it, followed by its answer."""
        before, whole = self._prompt_text(prompt, tools), self._render(join_messages(prompt, answer), tools)
        return (
            whole
            if whole.startswith(before)
            else before + self._answer_text(before, whole, prompt, answer, tools)
        )

    def _answer_text(self, before: str, whole: str, prompt: Messages, answer: Messages, tools: Tools) -> str:
        """The answer's text, if the template writes the prompt differently once it is answered."""
        self.notes.add(
            "hold a prompt that the chat template writes differently once it is answered; answers are put after the "
            "prompt alone, as in sampling (model.chat_template_kwargs may make the two agree)"
        )
        # The first mark shows where the answer's text begins; its turn begins where the two texts start to differ.
        marked = mark(answer)
        marked_text = self._render(join_messages(prompt, marked.messages), tools)
        first = min((marked_text.find(m.text) for m in marked.marks if m.text in marked_text), default=-1)
        if first < 0 or not whole.startswith(marked_text[:first]):
            raise rewritten_error()
        prompt_text = self._render(prompt, tools) if prompt[-1]["role"] != "assistant" else ""
        shared = agreeing(prompt_text, whole)
        start = max(shared, min(agreeing(before, whole), first))
        if any(m.kind == "thought" for m in marked.marks if m.message == 0):
            thought = whole.find("<think>", shared, start)
            start = start if thought < 0 else thought
        for opening, closing in (
            "<>",
            "[]",
        ):  # not in the middle of a tag that begins like one of the prompt's
            opened = whole.rfind(opening, shared, start)
            start = opened if opened > whole.rfind(closing, shared, start) else start
        return whole[start:]

    def assistant_spans(self, messages: Messages, tools: Tools, text: str) -> list[tuple[int, int]]:
        """Spans of the assistant's messages in a rendered conversation, with their ends: [start, end) in characters."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._prompt_text(messages[:index], tools) if index else ""
            turn = self._render(messages[: index + 1], tools).rstrip()
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

    def _prompt_text(self, prompt: Messages, tools: Tools) -> str:
        """The text that the model continues; an unfinished message of the assistant at the end stays open."""
        if self._latest is not None and self._latest[:2] == (prompt, tools):
            return self._latest[2]  # a prompt is written again with each of its answers
        unfinished = bool(prompt) and is_unfinished(prompt[-1])
        text = self._render(
            prompt, tools, add_generation_prompt=not unfinished, continue_final_message=unfinished
        )
        self._latest = [dict(message) for message in prompt], tools, text
        return text

    def _render(self, messages: Messages, tools: Tools, **how: Any) -> str:
        """The output of the chat template for a conversation; raises BadRow if the template refuses it."""
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

    def _write(self, compose: Compose, messages: Messages, tools: Tools) -> tuple[str, Messages]:
        """Text of a conversation, and the first variant of the conversation that the template writes completely.

        Raises:
            BadRow: the template refuses every variant, or does not write everything once and in its place.
        """
        first: BadRow | None = None
        shape, marked = plain_shape(messages, tools), None
        if shape is None:
            marked = mark(messages, tools)
            shape = marked.shape
        for index, convert in enumerate(FORMS):
            version = convert(messages)
            if index and version == messages:
                continue
            try:
                text = compose(version, tools)
                kind = (compose.__name__, index, shape)
                if kind not in self._problems:
                    marked = marked or mark(messages, tools)
                    self._remember_shape(kind, compose, marked)
                self._check_shape(kind)
                self._check_text(text, messages, tools)
                return text, version
            except BadRow as bad:  # an error about missing text is more useful than a refused variant
                first = bad if first is None or first.kind == REFUSED != bad.kind else first
        assert first is not None
        raise first

    def _remember_shape(self, kind: Kind, compose: Compose, marked: Marked) -> None:
        """Find out what the template does with the texts of all conversations of one shape."""
        if len(self._problems) >= SHAPES:
            self._problems.clear()
        try:
            text = compose(FORMS[kind[1]](marked.messages), marked.tools)
            self._problems[kind] = misplaced(text, marked), list(unwritten_keys(text, marked))
        except BadRow:  # a template may refuse the marks
            self._problems[kind] = None, []

    def _check_shape(self, kind: Kind) -> None:
        """Raise BadRow unless all texts of a conversation of this shape are written once and in their place."""
        problem, keys = self._problems[kind]
        if problem is not None:
            raise changed_error(problem)
        self.notes |= {
            f"hold the key {key} in messages, which the chat template does not write" for key in keys
        }

    def _check_text(self, text: str, messages: Messages, tools: Tools) -> None:
        """Raise BadRow unless all texts of this conversation appear in the rendered text, in their place."""
        lost, thoughts = missing(text, messages, tools)
        if thoughts:
            self.notes.add(
                "hold thoughts in earlier turns, which the chat template leaves out, as it does in use; they are "
                "not trained on"
            )
        if lost is not None:
            raise changed_error(f"{lost} does not stand in its text, or not in its place")

    def _without_ends(self, messages: Messages) -> Messages:
        """The messages without end tokens written out in the assistant's content, if the template adds its own."""
        if not self.ends:
            return messages
        result = []
        for message in messages:
            content = message["content"] or ""
            while message["role"] == "assistant" and content.rstrip().endswith(self.ends):
                last = next(end for end in self.ends if content.rstrip().endswith(end))
                content = content.rstrip().removesuffix(last)
            result.append(
                {**message, "content": content} if content != (message["content"] or "") else message
            )
        return result


def is_unfinished(message: Mapping[str, Any]) -> bool:
    """Whether the last message of a prompt is to be continued; a message that calls tools is complete."""
    return message["role"] == "assistant" and not message.get("tool_calls")


def join_messages(prompt: Messages, answer: Messages) -> Messages:
    """A prompt and its answer as one conversation; an unfinished message and its continuation become one message."""
    last, first = prompt[-1], answer[0]
    if not is_unfinished(last) or first["role"] != "assistant":
        return [*prompt, *answer]
    if any(last.get(key) and first.get(key) for key in THOUGHTS):
        raise BadRow(
            "the unfinished answer in the prompt and the answer that continues it both hold thoughts",
            "whose answers hold thoughts twice",
        )
    both = {**last, **first, "content": (last["content"] or "") + (first["content"] or "")}
    return [*prompt[:-1], both, *answer[1:]]


def filled_contents(messages: Messages) -> Messages:
    """A conversation in which a content of None is replaced by the empty text."""
    return [{**m, "content": m["content"] or ""} for m in messages]


def bare_calls(messages: Messages) -> Messages:
    """A conversation in which tool calls without text have the content None."""
    return [{**m, "content": m["content"] or None} if m.get("tool_calls") else m for m in messages]


def text_arguments(messages: Messages) -> Messages:
    """A conversation whose tool calls have their arguments as JSON text, and empty text instead of None."""
    return [as_text(m) for m in filled_contents(messages)]


def bare_text_calls(messages: Messages) -> Messages:
    """The same, with the content None for messages that only call tools."""
    return bare_calls(text_arguments(messages))


FORMS: tuple[Callable[[Messages], Messages], ...] = (
    lambda messages: messages,
    filled_contents,
    bare_calls,
    text_arguments,
    bare_text_calls,
)
"""Variants of a conversation that different templates expect; the first that is written completely is used."""


def agreeing(first: str, second: str) -> int:
    """Length of the common beginning of two texts."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def rewritten_error() -> BadRow:
    """The error for a row whose answer cannot be located in the template's text."""
    return BadRow(
        "the chat template rewrites the answer beyond recognition",
        "rewritten by the template",
        "Set model.chat_template_kwargs so that a prompt is written alike with and without its answer",
    )


def changed_error(problem: str) -> BadRow:
    """The error for a row that the template does not write completely."""
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
