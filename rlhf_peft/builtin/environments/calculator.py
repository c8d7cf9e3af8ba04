"""`calculator`: an environment with one tool, which computes; the first answer without a call ends the conversation.

What the model writes is never executed: an expression is parsed, and only numbers, + - * / % **, brackets and signs
are computed. The reward is 1 if the last number of the final answer is the row's `answer`, otherwise 0; rows
without an `answer` have no reward.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from rlhf_peft.plugin import EnvironmentStep, Options

OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LARGEST = 1e15
"""Largest absolute value that may occur in a calculation."""
LONGEST = 200
"""Most characters of an expression."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class CalculatorOptions(Options):
    """Options of `calculator`."""

    max_turns: int = Field(
        4, gt=0, le=64, description="Number of the model's answers after which the conversation ends."
    )


class Calculator:
    """One conversation with the tool `calculate`."""

    Options = CalculatorOptions
    metrics: ClassVar[Mapping[str, str]] = {
        "calls": "calls of the tool in the conversation",
        "failed_calls": "calls that gave an error",
    }
    tools: Sequence[Mapping[str, Any]] | None = (
        {
            "type": "function",
            "function": {
                "name": "calculate",
                "description": "Compute an arithmetic expression.",
                "parameters": {
                    "type": "object",
                    "properties": {"expression": {"type": "string", "description": "Such as (3 + 4) * 12."}},
                    "required": ["expression"],
                },
            },
        },
    )

    def __init__(self, options: CalculatorOptions) -> None:
        self.options = options
        self._row: Mapping[str, Any] = {}
        self._turns = self._calls = self._failed = 0

    def start(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
        """Begin with the row's own prompt."""
        self._row = row
        self._turns = self._calls = self._failed = 0
        return None

    def step(self, message: Mapping[str, Any]) -> EnvironmentStep:
        """Run the tool calls of a message; the conversation ends if there are none."""
        self._turns += 1
        calls = list(message.get("tool_calls") or ())
        results = [self._answer(call) for call in calls]
        metrics = {"calls": float(self._calls), "failed_calls": float(self._failed)}
        if calls and self._turns < self.options.max_turns:
            return EnvironmentStep(messages=results, metrics=metrics)
        return EnvironmentStep(
            done=True, reward=self._reward(str(message.get("content") or "")), metrics=metrics
        )

    def close(self) -> None:
        """Do nothing, since nothing is open."""

    def _answer(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Run one tool call; returns the message with its result."""
        self._calls += 1
        function = call.get("function", {})
        try:
            arguments = function.get("arguments", {})
            values = json.loads(arguments) if isinstance(arguments, str) else arguments
            content = f"{evaluate(str(values['expression'])):.10g}"
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            self._failed += 1
            content = f"error: {error or type(error).__name__}"
        return {"role": "tool", "name": str(function.get("name", "calculate")), "content": content}

    def _reward(self, answer: str) -> float | None:
        """1 if the last number of the answer is the right one, else 0; None if the row has no answer."""
        if "answer" not in self._row:
            return None
        numbers = NUMBER.findall(answer.replace(",", ""))
        expected = NUMBER.findall(str(self._row["answer"]).replace(",", ""))
        is_right = bool(numbers and expected) and math.isclose(
            float(numbers[-1]), float(expected[-1]), rel_tol=1e-9
        )
        return float(is_right)


def evaluate(expression: str) -> float:
    """Compute an arithmetic expression.

    Args:
        expression: numbers, + - * / % **, brackets and signs.

    Raises:
        ValueError: it is too long, is no such expression, or its value is too large.
        ArithmeticError: it divides by zero or overflows.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters; at most {LONGEST} are computed")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("this is no arithmetic expression") from None
    return _value(tree.body)


def _value(node: ast.AST) -> float:
    """The value of a parsed expression."""
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and not isinstance(node.value, bool)
    ):
        value = float(node.value)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("only numbers, + - * / % **, brackets and signs are computed")
    if isinstance(value, complex) or not abs(value) <= LARGEST:
        raise ValueError("the value is too large, or is no real number")
    return value
