"""Ragged rows into padded tensors, and rows into batches under a budget of tokens.

Letters: B rows, T tokens of the longest row. Masks come from lengths, never from token ids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(rows: Sequence[Tensor], value: float) -> Tensor:
    """Rows of [T_i] as [B, T], filled on the right.

    Args:
        rows: 1-D tensors of one dtype.
        value: what to fill with.

    Returns:
        [B, T] of the rows' dtype and device.
    """
    if not rows:
        raise ValueError("no rows to pad")
    out = rows[0].new_full((len(rows), max(len(row) for row in rows)), value)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def pad_left(rows: Sequence[Tensor], value: float) -> Tensor:
    """Rows of [T_i] as [B, T], filled on the left.

    Args:
        rows: 1-D tensors of one dtype.
        value: what to fill with.

    Returns:
        [B, T] of the rows' dtype and device.
    """
    if not rows:
        raise ValueError("no rows to pad")
    longest = max(len(row) for row in rows)
    out = rows[0].new_full((len(rows), longest), value)
    for place, row in enumerate(rows):
        out[place, longest - len(row) :] = row
    return out


def mask_from_lengths(lengths: Tensor | Sequence[int], T: int, *, left: bool = False) -> Tensor:
    """[B, T] bool, True at the real tokens of rows of these lengths.

    Args:
        lengths: [B] tokens of each row.
        T: width of the padded rows.
        left: rows are padded on the left.
    """
    lengths = torch.as_tensor(lengths)
    places = torch.arange(T, device=lengths.device)
    if left:
        return places >= T - lengths[:, None]
    return places < lengths[:, None]


def length_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    indices: Sequence[int] | None = None,
    unit: Sequence[int] | None = None,
    group: Sequence[int] | None = None,
) -> list[list[int]]:
    """Rows grouped by length so that each batch, padded, stays within a budget of tokens.

    Longest first, so that a batch that does not fit in memory fails at once.

    Args:
        lengths: tokens of each row.
        max_tokens: budget: rows of a batch times its longest row.
        indices: rows to group; default: all.
        unit: for each row, the number of the unit that must stay together; default: every row alone.
        group: for each row, the number of a group that is kept together where the budget allows it, and cut into
            even parts where it does not.

    Returns:
        Batches of row indices; a batch over the budget holds one unit only.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    together: dict[int, list[int]] = {}
    for row in range(len(lengths)) if indices is None else indices:
        together.setdefault(row if unit is None else int(unit[row]), []).append(row)
    of = [0] * len(lengths) if group is None else [int(number) for number in group]
    longest_of: dict[int, int] = {}
    for row, length in enumerate(lengths):
        longest_of[of[row]] = max(length, longest_of.get(of[row], 0))

    def order(rows: list[int]) -> tuple[int, int, int, list[int]]:
        own, number = max(lengths[row] for row in rows), of[rows[0]]
        return -longest_of[number], number, -own, rows

    units = sorted(together.values(), key=order)
    if group is not None:
        return _whole_groups(units, lengths, of, longest_of, max_tokens)
    batches: list[list[int]] = []
    longest = 0
    for rows in units:
        if batches and (len(batches[-1]) + len(rows)) * longest <= max_tokens:
            batches[-1].extend(rows)
        else:
            batches.append(list(rows))
            longest = max(lengths[row] for row in rows)
    return batches


def _whole_groups(
    units: list[list[int]],
    lengths: Sequence[int],
    of: Sequence[int],
    longest_of: dict[int, int],
    max_tokens: int,
) -> list[list[int]]:
    """Batches of whole groups; a group that is too large for one alone is cut into even parts."""
    batches: list[list[int]] = []
    longest = 0
    for number, found in itertools.groupby(units, key=lambda rows: of[rows[0]]):
        whole = list(found)
        count = sum(map(len, whole))
        if batches and (len(batches[-1]) + count) * longest <= max_tokens:
            batches[-1].extend(row for rows in whole for row in rows)
            continue
        longest = longest_of[number]
        most = max(1, max_tokens // max(1, longest))
        even = math.ceil(count / math.ceil(count / most))
        part: list[int] = []
        for rows in whole:
            if part and len(part) + len(rows) > even:
                batches.append(part)
                part = []
            part = [*part, *rows]
        batches.append(part)
    return batches
