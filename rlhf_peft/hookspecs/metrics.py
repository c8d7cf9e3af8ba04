"""The names of metrics, and the tables that give each a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def without_formula(names: Iterable[str], *tables: Mapping[str, str]) -> list[str]:
    """The names for which no table has a formula.

    Args:
        names: names of metrics.
        tables: name to formula; `<name>` in a name stands for one word, as in `eval/<name>/loss`.
    """
    patterns = [re.compile(re.escape(key).replace("<name>", "[^/]+")) for table in tables for key in table]
    return [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)]
