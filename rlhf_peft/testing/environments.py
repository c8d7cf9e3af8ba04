"""Checks that environments keep the rules of the plugin interface."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import EnvironmentStep
from .rules import global_streams_untouched, make, require, require_metrics

ROW = {"prompt": [{"role": "user", "content": "What is 3 + 4?"}], "answer": "7"}
ANSWERS: Sequence[Mapping[str, Any]] = (
    {"role": "assistant", "content": "I do not know."},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": "7"},
)
NONSENSE: Sequence[Mapping[str, Any]] = (
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "no such tool"}}],
    },
    {"role": "assistant", "content": "{]", "tool_calls": [{"function": {"name": "", "arguments": "{]"}}]},
    {"role": "assistant", "content": "\x00 " * 10},
)
"""Messages as models may write them: calls of unknown tools, arguments that are no JSON, control characters."""
MOST = 100
"""Most turns after which an environment must be done."""


def check_environment(
    factory: Any,
    options: Mapping[str, Any] | None = None,
    row: Mapping[str, Any] | None = None,
    answers: Sequence[Mapping[str, Any]] = ANSWERS,
) -> None:
    """Check that an environment keeps the rules.

    Its tools are JSON schemas. `start` returns messages or None, `step` an `EnvironmentStep`; all are JSON, and the
    same for the same row and answers. Two conversations do not affect each other. Nothing that a model may write makes
    it raise. Rewards and metrics are finite, and metrics have a formula. `close` may be called twice.

    Args:
        factory: what is registered.
        options: as a recipe gives them.
        row: of a dataset; default: one with a prompt and an answer.
        answers: of the model, one for each turn, until the environment is done.

    Raises:
        ConformanceError: a rule is broken.
    """
    who = f"environment {getattr(factory, '__name__', '')}".rstrip()
    columns = dict(row or ROW)
    with global_streams_untouched(who):
        first = make(factory, options)
        _check_tools(first.tools, who)
        require(isinstance(first.metrics, Mapping), f"{who}.metrics maps each metric to its formula.")
        whole = _conversation(first, columns, answers, who)
        again = _conversation(make(factory, options), columns, answers, who)
        require(whole == again, f"{who}: the same row and answers gave another conversation.")
        _check_apart(factory, options, columns, answers, whole, who)
        for message in NONSENSE:
            _conversation(make(factory, options), columns, [message, *answers], who)
        first.close()
        first.close()


def _check_tools(tools: Any, who: str) -> None:
    if tools is None:
        return
    require(isinstance(tools, Sequence), f"{who}.tools is a sequence of JSON schemas or None.")
    for tool in tools:
        require(_is_json(tool), f"{who}.tools holds something that is no JSON: {tool!r}.")
        function = tool.get("function", {})
        fits = tool.get("type") == "function" and function.get("name") and "parameters" in function
        require(
            bool(fits),
            f'{who}.tools: a tool is {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}, '
            f"found {tool!r}.",
        )


def _conversation(environment: Any, row: Mapping[str, Any], answers: Sequence[Any], who: str) -> list[Any]:
    """Everything that the environment returns until it is done, or the answers are used up."""
    before = json.dumps(row)
    beginning = environment.start(dict(row))
    _check_messages(beginning if beginning is not None else [], f"{who}.start", who)
    turns: list[Any] = [beginning]
    for message in answers:
        step = environment.step(json.loads(json.dumps(message)))
        _check_step(step, environment.metrics, who)
        turns.append((list(step.messages), step.done, step.reward, dict(step.metrics)))
        if step.done:
            break
    else:
        for _ in range(MOST):
            if environment.step({"role": "assistant", "content": "I am done."}).done:
                break
        else:
            require(
                False,
                f"{who} was not done after {MOST} answers that called no tool: a conversation must end.",
            )
    require(json.dumps(row) == before, f"{who} changed the row that it was given.")
    return turns


def _check_step(step: Any, formulas: Mapping[str, str], who: str) -> None:
    require(
        isinstance(step, EnvironmentStep),
        f"{who}.step gives an EnvironmentStep, found {type(step).__name__}.",
    )
    _check_messages(step.messages, f"{who}.step", who)
    require(isinstance(step.done, bool), f"{who}.step: done is True or False, found {step.done!r}.")
    require(
        step.done or bool(step.messages),
        f"{who}.step: a turn that is not the last one has messages to answer.",
    )
    finite = step.reward is None or (isinstance(step.reward, int | float) and math.isfinite(step.reward))
    require(finite, f"{who}.step: reward is a finite number or None, found {step.reward!r}.")
    require_metrics(step.metrics, f"{who}.step", formulas)


def _check_messages(messages: Any, where: str, who: str) -> None:
    require(
        isinstance(messages, Sequence), f"{where}: messages are a sequence, found {type(messages).__name__}."
    )
    for message in messages:
        require(_is_json(message), f"{where}: a message is no JSON: {message!r}.")
        fits = message.get("role") in ("system", "user", "tool") and isinstance(message.get("content"), str)
        require(
            fits,
            f'{where}: a message has a role of "system", "user" or "tool" and a content of text, found {message!r}; '
            "only the model writes as the assistant.",
        )


def _check_apart(
    factory: Any,
    options: Any,
    row: Mapping[str, Any],
    answers: Sequence[Any],
    whole: list[Any],
    who: str,
) -> None:
    """Check that a conversation is the same while another one is going on."""
    one, other = make(factory, options), make(factory, options)
    one.start(dict(row))
    other.start(dict(row))
    for message, expected in zip(answers, whole[1:], strict=False):
        step = one.step(json.loads(json.dumps(message)))
        other.step({"role": "assistant", "content": "another conversation"})
        same = (list(step.messages), step.done, step.reward, dict(step.metrics)) == expected
        require(same, f"{who}: a conversation depends on another one; keep its state on the instance.")
        if step.done:
            return
        if other is not None:
            other = make(factory, options)
            other.start(dict(row))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(value, Mapping)
