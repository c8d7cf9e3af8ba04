"""Checks of answers that a worker process runs by itself; the standard library alone, so that it stays small.

Each is a function in TRL's form; `_options` holds what the recipe says, under a name that no dataset's column has.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

_SIGN = r"[+\-]?"
_AMOUNT = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})\s*[$€£]?\s*(?P<inner>{_SIGN})(?:"
    rf"\\[dt]?frac\s*\{{\s*(?P<top>{_SIGN}\d+)\s*\}}\s*\{{\s*(?P<bottom>\d+)\s*\}}"
    rf"|(?P<amount>{_AMOUNT})(?:[eE](?P<exponent>{_SIGN}\d+))?(?:\s*/\s*(?P<over>\d+))?"
    r")\s*(?P<percent>\\?%)?"
)
LONGEST_EXPONENT = 300
NO_COLUMNS = frozenset({"prompts", "completion_ids", "log_metric", "log_extra", "trainer_state"})
"""What TRL gives a function beside the dataset's columns."""


def text_of(completion: Any) -> str:
    """A completion as text, also where it is messages."""
    return completion if isinstance(completion, str) else "".join(str(m["content"]) for m in completion)


def gold_of(columns: Mapping[str, Sequence[Any]], column: str | None) -> Sequence[Any]:
    """The column with the right answers: the one named, else `answer`, else `solution`.

    Raises:
        LookupError: there is none.
    """
    wanted = ("answer", "solution") if column is None else (column,)
    for name in wanted:
        if name in columns:
            return columns[name]
    known = ", ".join(sorted(set(columns) - NO_COLUMNS)) or "none"
    raise LookupError(
        f"the dataset has no column {' or '.join(wanted)}; it has {known}. Name one: column=..."
    )


def final_answer(text: str) -> str | None:
    r"""What stands in the last `\\boxed{}`, else behind the last `####`; None where there is neither."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for at in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[begin + 1 : at].strip()
    _, marker, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0].strip() if marker else None


def number_in(text: str) -> tuple[Fraction, bool] | None:
    """The last number of a text, exactly, and whether it is a percentage; None where there is none.

    Knows signs, thousands separators, decimals, exponents, fractions (`1/3` and `\\frac{1}{3}`) and currency signs.
    """
    text = (
        text.replace("−", "-").replace("{,}", ",").replace("\\$", "$").replace("\\!", "").replace("\\,", "")
    )
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007
        pass
    if found is None:
        return None
    value = _magnitude(found)
    if value is None:
        return None
    before = text[found.start() - 1 : found.start()] if found.start() else ""
    # In `10-3` and `x-3` the dash is no sign.
    signs = [] if before.isalnum() or before == ")" else [found["sign"]]
    negative = [*signs, found["inner"]].count("-") % 2 == 1
    return (-value if negative else value), found["percent"] is not None


def _magnitude(found: re.Match[str]) -> Fraction | None:
    if found["top"] is not None:
        return Fraction(int(found["top"]), int(found["bottom"])) if int(found["bottom"]) else None
    value = Fraction(found["amount"].replace(",", ""))
    if found["exponent"] is not None:
        if abs(int(found["exponent"])) > LONGEST_EXPONENT:
            return None
        value *= Fraction(10) ** int(found["exponent"])
    over = int(found["over"]) if found["over"] is not None else 1
    return value / over if over else None


def same_number(gold: str, text: str, tolerance: float = 0.0) -> bool | None:
    """Whether two texts end on the same number; None where the gold one holds no number.

    Where one is a percentage and the other is not, `50 %` equals 50 and 0.5.

    Args:
        gold: the right answer.
        text: the completion.
        tolerance: largest relative difference.
    """
    right = number_in(final_answer(gold) or gold)
    if right is None:
        return None
    answer = final_answer(text)
    given = number_in(text if answer is None else answer)
    if given is None:
        return False
    (one, one_percent), (other, other_percent) = right, given
    readings = (
        [other] if one_percent == other_percent else [other, other / 100 if other_percent else other * 100]
    )
    return any(abs(one - reading) <= Fraction(tolerance) * abs(one) for reading in readings)


def _verified(gold: str, text: str) -> bool | None:
    """As `same_number`, by math-verify, which knows algebra; its time limits need the main thread."""
    from math_verify import parse, verify

    main = threading.current_thread() is threading.main_thread()
    limits = {} if main else {"parsing_timeout": None}
    right = parse(_for_math_verify(gold), **limits)
    if not right:
        return None
    answer = parse(_for_math_verify(text), **limits)
    return bool(verify(right, answer, **({} if main else {"timeout_seconds": None})))


def _for_math_verify(text: str) -> str:
    answer = final_answer(text)
    return text if answer is None else f"\\boxed{{{answer}}}"


def has_math_verify() -> bool:
    """Whether math-verify is installed."""
    return importlib.util.find_spec("math_verify") is not None


def numeric_scores(
    completions: Sequence[Any], _options: Mapping[str, Any], **columns: Any
) -> list[float | None]:
    """1 for the right number, 0 for another or none; None where the dataset's answer holds no number."""
    gold = [str(value) for value in gold_of(columns, _options["column"])]
    by_algebra = _options["checker"] == "math-verify" or (
        _options["checker"] == "auto" and not _options["tolerance"] and has_math_verify()
    )
    out: list[float | None] = []
    for right, completion in zip(gold, completions, strict=True):
        text = text_of(completion)
        same = same_number(right, text, _options["tolerance"])
        if by_algebra and not same:
            same = _verified(right, text)
        out.append(None if same is None else float(same))
    return out


def regex_scores(completions: Sequence[Any], _options: Mapping[str, Any], **_: Any) -> list[float]:
    """`score` where the pattern is found, `otherwise` where it is not."""
    flags = 0
    for name in _options["flags"]:
        flags |= int(getattr(re, name.upper()))
    pattern = re.compile(_options["pattern"], flags)
    find = pattern.fullmatch if _options["match"] == "fullmatch" else pattern.search
    return [
        float(_options["score"] if find(text_of(completion)) else _options["otherwise"])
        for completion in completions
    ]
