"""Checks of answers that run in a worker process; they import only the standard library, so that it stays small.

Each is a function in TRL's form. `_options` holds the options of the recipe, under a name that no dataset's column
has.
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
_FRACTION = rf"\\frac\s*\{{\s*(?P<top>{_SIGN}\d+)\s*\}}\s*\{{\s*(?P<bottom>{_SIGN}\d+)\s*\}}"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})\s*(?P<inner>{_SIGN})(?:"
    r"(?P<whole>\d+)(?:\s*\\frac\s*\{\s*(?P<above>\d+)\s*\}\s*\{\s*(?P<below>\d+)\s*\}|\s+(?P<over>\d+)/(?P<under>\d+))"
    rf"|{_FRACTION}"
    r"|(?P<base>\d+)\s*\^\s*\{?(?P<power>\d{1,3})(?!\d)\}?"
    rf"|(?P<amount>{_AMOUNT})(?:(?:[eE]|\s*(?:\\times|\\cdot|[×*])\s*10\s*\^\s*\{{?)(?P<exponent>{_SIGN}\d+)\}}?)?"
    r"(?:\s*/\s*(?P<divisor>\d+))?"
    r")(?P<percent>\s*%)?"
)
"""One plain number: an amount, a fraction, a mixed fraction or a power, with a sign and a per cent sign."""
_TIME = re.compile(
    r"(\d{1,2}):(\d\d)(?::(\d\d))?(?!\s*:|\d)\s*([ap])?\.?(?:(?<=[ap])\s*m|(?<=[ap]\.)\s*m)?\b\.?",
    re.IGNORECASE,
)
_RATIO = re.compile(r"\d+(?:\s*:\s*\d+)+")
_UNIT = re.compile(
    r"\s*((?:[a-z]+\.?\s*(?:\^\s*\{?\d\}?)?)(?:(?:\s*/\s*|\s+)[a-z]+\.?(?:\^\{?\d\}?)?){0,3})", re.IGNORECASE
)
_INSIDE = re.compile(r"[(\[{][^()\[\]{}]*,[^()\[\]{}]*$")
"""The beginning of a tuple, an interval or a set."""
_PART = re.compile(
    r"(?:\b[a-z]|\^\s*\{?\w+\}?|[)\]}])\s*(?:[+*/]|\\cdot|\\times|\s-\s|>|<|\\[lg]eq?)\s*$|\\(?:cdot|times)\s*$"
)
"""The text before a number that is only a part of an expression."""
_TERM = re.compile(r"(?:\b[a-z]|\^\s*\{?\w+\}?|[)\]}])\s*$")
_EXPONENT = re.compile(r"[A-Za-z]\s*\^\s*\{?$")
_UNITS = {
    name: first
    for names in (
        "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
        "in inch inches", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram", "kg kilogram", "lb pound",
        "oz ounce", "ml milliliter millilitre", "l liter litre", "s sec second", "min minute", "h hr hour", "day",
        "week", "month", "year", "deg degree", "rad radian", "dollar usd", "cent", "euro eur", "mph", "kph",
    )
    for first in [names.split()[0]]
    for name in names.split()
}  # fmt: skip
LONGEST_EXPONENT = 300
LARGEST_POWER = 10**6
NO_COLUMNS = frozenset({"prompts", "completion_ids", "log_metric", "log_extra", "trainer_state"})
"""Arguments that TRL gives a function besides the dataset's columns."""


def text_of(completion: Any) -> str:
    """The text of a completion, which may be a list of messages."""
    return completion if isinstance(completion, str) else "".join(str(m["content"]) for m in completion)


def gold_of(columns: Mapping[str, Sequence[Any]], column: str | None) -> Sequence[Any]:
    """The column with the right answers: the given one, else `answer`, else `solution`.

    Raises:
        LookupError: there is no such column.
    """
    names = ("answer", "solution") if column is None else (column,)
    for name in names:
        if name in columns:
            return columns[name]
    known = ", ".join(sorted(set(columns) - NO_COLUMNS)) or "none"
    raise LookupError(f"the dataset has no column {' or '.join(names)}; it has {known}. Name one: column=...")


def final_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, else the text after the last `####`; None if there is neither."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 0, start + len("\\boxed")
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[begin + 1 : end].strip()
    _, marker, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0].strip() if marker else None


def clean_latex(text: str) -> str:
    """A text without LaTeX markup of delimiters and spaces, with one form of signs and fractions."""
    for old, new in _LATEX_REPLACEMENTS:
        text = text.replace(old, new)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)", " degrees", text)
    return re.sub(r"\b(\d[\d.]*)\s+per\s?cent\b", r"\1%", text).strip()


_LATEX_REPLACEMENTS = (
    ("−", "-"), ("{,}", ","), ("\\$", ""), ("$", ""), ("€", ""), ("£", ""), ("\\!", ""), ("\\,", ""), ("\\;", " "),
    ("\\ ", " "), ("~", " "), ("\\%", "%"), ("\\left", ""), ("\\right", ""), ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"), ("²", "^2"), ("³", "^3"),
)  # fmt: skip


class Amount:
    """A plain number as it was written.

    Attributes:
        value: exact value.
        percent: whether it is a percentage.
        unit: normalised unit after the number; empty if there is none.
    """

    def __init__(self, value: Fraction, percent: bool, unit: str = "") -> None:
        self.value, self.percent, self.unit = value, percent, unit

    def equals(self, other: Amount, tolerance: float) -> bool:
        """Whether two amounts are the same: `50 %` equals 50 and 0.5; units count if both are known."""
        if _unit_known(self.unit) and _unit_known(other.unit) and self.unit != other.unit:
            return False
        readings = [other.value]
        if self.percent != other.percent:
            readings.append(other.value / 100 if other.percent else other.value * 100)
        return any(abs(self.value - one) <= Fraction(tolerance) * abs(self.value) for one in readings)


def amount(text: str) -> Amount | None:
    """Parse a cleaned text that is one plain number, perhaps with a unit; None if it is something else."""
    text = text.strip().rstrip(".")
    match = _NUMBER.match(text)
    value = None if match is None else _value(match, "")
    if match is None or value is None:
        return None
    rest = text[match.end() :]
    if not rest:
        return Amount(value, match["percent"] is not None)
    unit = _UNIT.fullmatch(rest)
    if (
        unit is None
        or not (rest[0].isspace() or _unit_known(_normal_unit(rest)))
        or (len(rest.strip()) < 2 and not _unit_known(_normal_unit(rest)))
    ):
        return None
    return Amount(value, match["percent"] is not None, _normal_unit(rest))


def last_amount(text: str) -> Amount | None:
    """The last number of a cleaned text; None if there is none, or if it is only a part of an expression."""
    numbers = list(_NUMBER.finditer(text))
    while numbers and _EXPONENT.search(text[: numbers[-1].start()][-8:]):
        numbers.pop()
    if not numbers:
        return None
    match = numbers[-1]
    before, after = text[max(0, match.start() - 200) : match.start()], text[match.end() :]
    if match["sign"] and _TERM.search(before):
        return None
    if _INSIDE.search(before) or _PART.search(before) or re.search(r"\d\s*:\s*$|[A-Za-z)\]]_\{?$", before):
        return None
    value = _value(match, before[-1:])
    unit = _UNIT.match(after)
    return (
        None
        if value is None
        else Amount(value, match["percent"] is not None, _normal_unit(unit[1]) if unit else "")
    )


def _value(match: re.Match[str], before: str) -> Fraction | None:
    """The signed value of a match of `_NUMBER`; `before` is the character before it."""
    value = _magnitude(match)
    if value is None:
        return None
    # In `10-3` and `x-3` the dash is no sign.
    signs = [] if before.isalnum() or before == ")" else [match["sign"]]
    return -value if [*signs, match["inner"]].count("-") % 2 == 1 else value


def _magnitude(match: re.Match[str]) -> Fraction | None:
    """The unsigned value of a match of `_NUMBER`; None if it is undefined or too large."""
    if match["whole"] is not None:
        top, bottom = match["above"] or match["over"], int(match["below"] or match["under"])
        return int(match["whole"]) + Fraction(int(top), bottom) if bottom else None
    if match["top"] is not None:
        return Fraction(int(match["top"]), int(match["bottom"])) if int(match["bottom"]) else None
    if match["base"] is not None:
        base, power = int(match["base"]), int(match["power"])
        return Fraction(base) ** power if base <= LARGEST_POWER else None
    value = Fraction(match["amount"].replace(",", ""))
    if match["exponent"] is not None:
        if abs(int(match["exponent"])) > LONGEST_EXPONENT:
            return None
        value *= Fraction(10) ** int(match["exponent"])
    over = int(match["divisor"]) if match["divisor"] is not None else 1
    return value / over if over else None


def _normal_unit(unit: str) -> str:
    """A unit in its normal spelling: `square centimeters` as `cm^2`."""
    unit = re.sub(r"\s*\^\s*\{?(\d)\}?", r"^\1", unit.lower().replace(".", " ")).strip()
    unit = re.sub(r"^(square|cubic)\s+(\w+)", lambda m: f"{m[2]}^{2 if m[1] == 'square' else 3}", unit)
    parts = re.split(r"(\s*/\s*|\s+per\s+)", unit)
    return "".join("/" if index % 2 else _normal_unit_part(part) for index, part in enumerate(parts))


def _normal_unit_part(part: str) -> str:
    name, caret, power = part.strip().partition("^")
    words = name.split()
    name = words[0] if words else ""
    known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s")) or name
    return f"{known}{caret}{power}"


def _unit_known(unit: str) -> bool:
    return bool(unit) and all(part.partition("^")[0] in _UNITS for part in unit.split("/"))


def time_of(text: str) -> tuple[str, ...] | None:
    """Parse a cleaned text that is a time of day or a duration such as `3:45 PM`; None if it is something else."""
    match = _TIME.fullmatch(text.strip())
    return None if match is None else tuple((part or "").lower().lstrip("0") for part in match.groups())


def is_expression(text: str) -> bool:
    """Whether a cleaned text is mathematics rather than prose."""
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", re.sub(r"\\(?:begin|end)\{\w+\}", "", text))
    return not words and bool(re.search(r"[\d\\+*^=()<>]", text))


def plain_form(text: str) -> str:
    """An expression without spaces and needless braces, for comparison."""
    text = clean_latex(text).rstrip(".").replace("\\cdot", "*").replace("\\times", "*")
    text = re.sub(r"\\frac\s*\{(\w+|\\\w+)\}\s*\{(\w+|\\\w+)\}", r"\1/\2", text)
    text = re.sub(r"\{(\w+)\}", r"\1", text)
    return re.sub(r"\s+", "", text)


def same_answer(gold: str, text: str, tolerance: float = 0.0, by_algebra: bool = False) -> bool | None:
    r"""Whether a completion ends with the right answer; None if the gold answer cannot be compared.

    A gold answer that is a plain number, perhaps with a unit, is compared as a number; a time as a time; any other
    expression by its form or, with math-verify, by its value.

    Args:
        gold: the right answer; if it contains `\boxed{}` or `####`, the marked part counts.
        text: the completion; its marked part counts, else its last number.
        tolerance: largest relative difference of numbers.
        by_algebra: compare expressions with math-verify.
    """
    gold_text = clean_latex(final_answer(gold) or gold).rstrip(".")
    marked = final_answer(text)
    answer_text = clean_latex(text if marked is None else marked)
    number = amount(gold_text)
    if number is not None:
        answer = amount(answer_text) or (last_amount(answer_text) if marked is None else None)
        if answer is not None:
            return number.equals(answer, tolerance)
        return bool(
            by_algebra
            and marked is not None
            and is_expression(answer_text)
            and _equal_by_algebra(gold_text, answer_text)
        )
    if time_of(gold_text) is not None:
        times = (
            [answer_text] if marked is not None else [match[0] for match in _TIME.finditer(answer_text)][-1:]
        )
        return any(time_of(one) == time_of(gold_text) for one in times)
    if not is_expression(gold_text):
        return None
    if plain_form(answer_text if marked is not None else _after_verb(answer_text)) == plain_form(gold_text):
        return True
    return bool(
        by_algebra
        and marked is not None
        and amount_or_expression(answer_text)
        and _equal_by_algebra(gold_text, answer_text)
    )


def amount_or_expression(text: str) -> bool:
    """Whether a cleaned text is an answer, rather than prose in which math-verify would find one."""
    return amount(text) is not None or is_expression(text)


def _after_verb(text: str) -> str:
    """The text after the last `is` or `are`, else the whole text; for an answer without a mark."""
    return re.split(r"\b(?:is|are)\b", text)[-1]


def _equal_by_algebra(gold: str, text: str) -> bool:
    """Whether math-verify finds two expressions equal. Its time limits work only in the main thread."""
    from math_verify import parse, verify

    main = threading.current_thread() is threading.main_thread()
    limits = {} if main else {"parsing_timeout": None}
    parsed_gold = parse(f"\\boxed{{{gold}}}", **limits)
    if not parsed_gold:
        return False
    parsed_answer = parse(f"\\boxed{{{text}}}", **limits)
    return bool(verify(parsed_gold, parsed_answer, **({} if main else {"timeout_seconds": None})))


def has_math_verify() -> bool:
    """Whether math-verify is installed."""
    return importlib.util.find_spec("math_verify") is not None


def numeric_scores(
    completions: Sequence[Any], _options: Mapping[str, Any], **columns: Any
) -> list[float | None]:
    """1 for the right answer, 0 for another or none; None if the dataset's answer cannot be compared."""
    gold = [str(value) for value in gold_of(columns, _options["column"])]
    by_algebra = _options["checker"] == "math-verify" or (
        _options["checker"] == "auto" and not _options["tolerance"] and has_math_verify()
    )
    out: list[float | None] = []
    for gold_answer, completion in zip(gold, completions, strict=True):
        text = text_of(completion)
        same = same_answer(gold_answer, text, _options["tolerance"], by_algebra)
        out.append(None if same is None else float(same))
    return out


def regex_scores(completions: Sequence[Any], _options: Mapping[str, Any], **_: Any) -> list[float]:
    """`score` if the pattern matches, else `otherwise`."""
    flags = 0
    for name in _options["flags"]:
        flags |= int(getattr(re, name.upper()))
    pattern = re.compile(_options["pattern"], flags)
    find = pattern.fullmatch if _options["match"] == "fullmatch" else pattern.search
    return [
        float(_options["score"] if find(text_of(completion)) else _options["otherwise"])
        for completion in completions
    ]
