"""Conversations to the text that is trained on: what the chat template writes, once it was seen to write all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..engine.ends import turn_end
from ..engine.templates import TemplateRefused, render
from ..errors import DataError
from .complete import missing
from .conversation import THOUGHTS, Messages
from .marks import Marked, mark, misplaced, unwritten_keys
from .rows import BadRow

Tools = list[dict[str, Any]] | None
Compose = Callable[[Messages, Tools], str]

REFUSED = "refused by the chat template"
"""The kind of a bad row for which a template raises an error."""
SHAPES = 4096
"""Most shapes of conversations that an encoder remembers."""


class Writer:
    """Writes conversations as the chat template does; `BadRow` where it does not write all that they say.

    Args:
        tokenizer: a transformers tokenizer.
        template_kwargs: passed to the chat template.
        ends: tokens that end an answer.

    Attributes:
        notes: what was found so far that is no error.
    """

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any], ends: Collection[str]) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs)
        self.ends = tuple(ends) if turn_end(tokenizer, template_kwargs) is not None else ()
        self.notes: set[str] = set()
        self._problems: dict[tuple[Any, ...], tuple[str | None, list[str]]] = {}
        self._latest: tuple[Messages, Tools, str] | None = None

    def prompt(self, prompt: Messages, tools: Tools) -> str:
        """The text of a prompt, ready to be continued by an answer."""
        return self._written(self._prompt_text, prompt, tools)[0]

    def conversation(self, messages: Messages, tools: Tools) -> tuple[str, Messages]:
        """The text of a whole conversation, and the form of it in which the template writes all of it."""
        return self._written(self._render, self._unended(messages), tools)

    def answered(self, before: str, prompt: Messages, answer: Messages, tools: Tools) -> str:
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
        return (
            whole if whole.startswith(before) else before + self._after(before, whole, prompt, answer, tools)
        )

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
        for opening, closing in (
            "<>",
            "[]",
        ):  # not in the middle of a tag that begins like one of the prompt's
            opened = whole.rfind(opening, floor, start)
            start = opened if opened > whole.rfind(closing, floor, start) else start
        return whole[start:]

    def assistant_spans(self, messages: Messages, tools: Tools, text: str) -> list[tuple[int, int]]:
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

    def _prompt_text(self, prompt: Messages, tools: Tools) -> str:
        """The text that the model continues; an unfinished turn of the assistant is left open."""
        if self._latest is not None and self._latest[:2] == (prompt, tools):
            return self._latest[2]  # a prompt is written again with each of its answers
        unfinished = bool(prompt) and is_unfinished(prompt[-1])
        text = self._render(
            prompt, tools, add_generation_prompt=not unfinished, continue_final_message=unfinished
        )
        self._latest = [dict(message) for message in prompt], tools, text
        return text

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
        self.notes |= {
            f"hold the key {key} in messages, which the chat template does not write" for key in keys
        }

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
        if not self.ends:
            return messages
        made = []
        for message in messages:
            content = message["content"] or ""
            while message["role"] == "assistant" and content.rstrip().endswith(self.ends):
                last = next(end for end in self.ends if content.rstrip().endswith(end))
                content = content.rstrip().removesuffix(last)
            made.append({**message, "content": content} if content != (message["content"] or "") else message)
        return made


def is_unfinished(message: Mapping[str, Any]) -> bool:
    """Whether a message at the end of a prompt is to be continued; one that calls tools is at its end."""
    return message["role"] == "assistant" and not message.get("tool_calls")


def joined(prompt: Messages, answer: Messages) -> Messages:
    """A conversation and its answer; an unfinished turn of the assistant and what continues it are one turn."""
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
