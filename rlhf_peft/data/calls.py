"""Brings tool calls and offered tools of different origins into one form, without dropping anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .json_text import loads, parse_column
from .rows import BadRow

MALFORMED = "with malformed tool calls"


def tool_calls(calls: Any, call: Any, where: str) -> dict[str, Any]:
    """Return `tool_calls` with their arguments as objects; an old `function_call` becomes one of them.

    Args:
        calls: a list of calls, or its JSON text.
        call: an old `function_call`.
        where: name of the message in error messages.

    Raises:
        BadRow: a call has no name, its arguments are no object, or it holds something that a template would not write.
    """
    calls, call = as_value(calls, where), as_value(call, where)
    if calls and call:
        raise BadRow(
            f"{where} has both tool_calls and function_call", MALFORMED, "Write all calls under tool_calls"
        )
    calls = calls or ([call] if call else [])
    if not calls:
        return {}
    if not isinstance(calls, list) or not all(isinstance(item, dict) for item in calls):
        raise BadRow(f"the tool calls of {where} are {kind(calls)}, expected a list of objects", MALFORMED)
    result = []
    for item in calls:
        function = item.get("function", item)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"a tool call of {where} has no function name", MALFORMED)
        check_keys(function, ("name", "arguments", "id", "type", "index"), where)
        check_keys(item, ("function", "id", "type", "index", "name", "arguments"), where)
        function = {**function, "arguments": arguments_of(function.get("arguments"), where)}
        result.append({"type": "function", **item, "function": function} if "function" in item else function)
    if call and "function" not in result[0]:
        result = [{"type": "function", "function": function} for function in result]
    return {"tool_calls": result}


def as_value(calls: Any, where: str) -> Any:
    """Parse calls that are stored as JSON text; return others unchanged."""
    return (
        parse_column(calls, f"the tool calls of {where}")
        if isinstance(calls, str) and calls.strip()
        else calls
    )


def check_keys(call: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise BadRow if a call holds a value under a key that no template writes."""
    for key, value in call.items():
        if key not in known and value not in (None, "", [], {}):
            raise BadRow(
                f"a tool call of {where} has the key {key!r}, expected name and arguments",
                MALFORMED,
                "Write what is given to the function under arguments",
            )


def arguments_of(arguments: Any, where: str) -> dict[str, Any]:
    """Arguments of a tool call as an object; a text is parsed as JSON, which is how OpenAI writes them."""
    value = arguments
    if isinstance(arguments, str) and arguments.strip():
        try:
            value = loads(arguments)
        except (ValueError, RecursionError) as error:
            raise BadRow(
                f"the arguments of a tool call of {where} are text that is not a JSON object ({str(error)[:80]})",
                MALFORMED,
            ) from error
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise BadRow(
            f"the arguments of a tool call of {where} are {kind(value)}, expected an object", MALFORMED
        )
    return value


def tools_in_row(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a row offers; None if there are none.

    They are in the column `tools`, or in `functions`, OpenAI's older name.

    Raises:
        BadRow: they are no JSON schemas, or differ between the two columns.
    """
    tools, functions = tools_of(row.get("tools")), row.get("functions")
    if functions in (None, "", []):
        return tools
    older = tools_of(functions, "functions")
    if tools is not None and older is not None and list(map(schema, tools)) != list(map(schema, older)):
        raise BadRow(
            "tools and functions hold different tools", "with two lists of tools", "Keep one of them"
        )
    if tools is not None or older is None:
        return tools
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in older]


def schema(tool: Mapping[str, Any]) -> Any:
    """The function part of a tool."""
    return tool.get("function", tool)


def tools_of(value: Any, name: str = "tools") -> list[dict[str, Any]] | None:
    """The tools in a value: a list of JSON schemas, or its JSON text; None if there are none."""
    wrong = f"with {name} of the wrong type"
    if isinstance(value, str) and value.strip():
        value = parse_column(value, name)
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(f"{name} is {kind(value)}, expected a list of JSON schemas", wrong)
    for number, tool in enumerate(value, start=1):
        function = schema(tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"tool {number} of {name} has no function name", wrong)
    return value


def kind(value: Any) -> str:
    """Description of a value for a message."""
    if isinstance(value, str):
        return "text"
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, f"the value {value!r}")
