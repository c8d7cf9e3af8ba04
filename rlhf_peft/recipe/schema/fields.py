"""Types of a recipe's values: names of runs and stages, numbers within bounds, arguments of chat templates."""

from __future__ import annotations

import json
import keyword
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!\.)")
WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"com{i}" for i in range(1, 10)),
    *(f"lpt{i}" for i in range(1, 10)),
}


LONGEST_NAME = 100
"""Most characters of a name: file systems allow 255 bytes, and checkpoints add to the names of stages."""


def check_run_name(name: str) -> str:
    """Return the name; raise ValueError unless it is safe as a folder name on every system."""
    if not RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a run: start with a letter or digit, then letters, digits, '.', '_' or "
            "'-', no dot at the end"
        )
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters; at most {LONGEST_NAME} make a folder's name")
    if name.split(".")[0].lower() in WINDOWS_DEVICES:
        raise ValueError(f"{name!r} cannot name a run: it is a device name on Windows")
    return name


def check_stage_name(name: str) -> str:
    """Return the name; raise ValueError unless it can be a part of file names."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters; at most {LONGEST_NAME} are a part of file names")
    if name and not RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a stage: start with a letter or digit, then letters, digits, '.', '_' or '-', no "
            "dot at the end"
        )
    return name


def number(value: Any) -> Any:
    """Convert text such as `1e-6`, which YAML does not read as a number; refuse `true` and `false`."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "Input should be a valid number")
    if isinstance(value, str):
        for parse in (int, float):
            try:
                return parse(value)
            except ValueError:
                continue
    return value


RunName = Annotated[str, AfterValidator(check_run_name)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(number)]
Count = Annotated[int, Field(gt=0, le=2**20), BeforeValidator(number)]
"""Number of rows, checkpoints and the like. This bound and those below only catch typing errors."""
Steps = Annotated[int, Field(gt=0, le=10**8), BeforeValidator(number)]
Tokens = Annotated[int, Field(gt=0, le=2**24), BeforeValidator(number)]
Rank = Annotated[int, Field(gt=0, le=2**14), BeforeValidator(number)]
Members = Annotated[int, Field(gt=0, le=64), BeforeValidator(number)]
Number = Annotated[float, Field(ge=-1e6, le=1e6), BeforeValidator(number)]
Positive = Annotated[float, Field(gt=0, le=1e6), BeforeValidator(number)]
NotNegative = Annotated[float, Field(ge=0, le=1e6), BeforeValidator(number)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(number)]
Rate = Annotated[float, Field(gt=0, le=100), BeforeValidator(number)]
Seconds = Annotated[float, Field(gt=0, le=1e7), BeforeValidator(number)]
WarmUp = Annotated[float, Field(ge=0, le=1e8), BeforeValidator(number)]


RENDERING = frozenset(
    [
        "conversation",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "kwargs",
        "self",
    ]
)
"""Arguments of a tokenizer's `apply_chat_template` that are not the template's own."""
JINJA = frozenset({"true", "false", "none", "loop", "caller", "varargs", "super", "context"})


def check_template_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments; raise ValueError unless their names are valid in a template and their values are finite."""
    for name, value in arguments.items():
        if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name in JINJA:
            raise ValueError(
                f"{name!r} cannot be an argument of a chat template: give a name of letters, digits and '_'"
            )
        if name in RENDERING:
            raise ValueError(f"{name!r} is set by rlhf-peft itself. Leave it out")
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(
                f"{name} holds a number that is not finite, which no template can hold"
            ) from None
    return arguments


TemplateArguments = Annotated[dict[str, Any], AfterValidator(check_template_arguments)]
