from __future__ import annotations

import json

import pytest

from rlhf_peft.data.calls import tools_in_row
from rlhf_peft.data.conversation import messages_of
from rlhf_peft.data.rows import BadRow

from .conftest import user
from .test_completeness import TOOL

CALL = {"name": "f", "arguments": {"x": 1}}


def said(**keys):
    return messages_of([user("a"), {"role": "assistant", **keys}], "messages")[1]


def test_calls_as_json_text():
    assert said(tool_calls=json.dumps([CALL])) == said(tool_calls=[CALL])
    assert said(function_call=json.dumps(CALL)) == said(function_call=CALL)


@pytest.mark.parametrize(
    "keys, found",
    [
        ({"tool_calls": [CALL], "function_call": CALL}, "both tool_calls and function_call"),
        ({"tool_calls": [{"name": "f", "input": {"x": 1}}]}, "the key 'input'"),
        ({"tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, "the key 'parameters'"),
        ({"tool_calls": [{"function": {"name": "f", "args": {"x": 1}}}]}, "the key 'args'"),
        ({"tool_calls": [{"function": CALL, "result": "3"}]}, "the key 'result'"),
        ({"tool_calls": CALL}, "are an object"),
        ({"tool_calls": "f(x)"}, "text that is not JSON"),
        ({"tool_calls": [{"name": "f", "arguments": '{"x": 1, "x": 2}'}]}, "'x' stands twice"),
        ({"tool_calls": [{"name": "f", "arguments": "x=1"}]}, "text that is not a JSON object"),
    ],
)
def test_what_no_template_would_write_is_refused(keys, found):
    with pytest.raises(BadRow, match=found):
        said(content="x", **keys)


def test_tools_under_their_older_name():
    functions = [TOOL["function"]]
    assert (
        tools_in_row({"functions": functions}) == tools_in_row({"functions": json.dumps(functions)}) == [TOOL]
    )
    assert tools_in_row({"functions": functions, "tools": [TOOL]}) == [TOOL]
    assert tools_in_row({"functions": [], "tools": None}) is None
    with pytest.raises(BadRow, match="hold different tools"):
        tools_in_row({"functions": [{"name": "g"}], "tools": [TOOL]})
