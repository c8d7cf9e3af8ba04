"""Pads rows of different lengths into tensors, and groups rows into batches under a budget of tokens.

B is the number of rows, T the number of tokens of the longest row. Masks are made from lengths, never from token ids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(rows: Sequence[Tensor], value: float) -> Tensor:
    """Stack rows of [T_i] into [B, T], padded on the right.

    Args:
        rows: 1-D tensors of one dtype.
        value: padding value.

    Returns:
        [B, T] of the rows' dtype and device.
    """
    if not rows:
        raise ValueError("no rows to pad")
    out = rows[0].new_full((len(rows), max(len(row) for row in rows)), value)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def pad_left(rows: Sequence[Tensor], value: float) -> Tensor:
    """Stack rows of [T_i] into [B, T], padded on the left.

    Args:
        rows: 1-D tensors of one dtype.
        value: padding value.

    Returns:
        [B, T] of the rows' dtype and device.
    """
    if not rows:
        raise ValueError("no rows to pad")
    longest = max(len(row) for row in rows)
    out = rows[0].new_full((len(rows), longest), value)
    for index, row in enumerate(rows):
        out[index, longest - len(row) :] = row
    return out


def mask_from_lengths(lengths: Tensor | Sequence[int], T: int, *, left: bool = False) -> Tensor:
    """[B, T] bool mask, True at the real tokens of padded rows.

    Args:
        lengths: [B], number of tokens of each row.
        T: width of the padded rows.
        left: whether rows are padded on the left.
    """
    lengths = torch.as_tensor(lengths)
    positions = torch.arange(T, device=lengths.device)
    if left:
        return positions >= T - lengths[:, None]
    return positions < lengths[:, None]


def length_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    indices: Sequence[int] | None = None,
    unit: Sequence[int] | None = None,
    group: Sequence[int] | None = None,
) -> list[list[int]]:
    """Group rows by length so that each padded batch stays within a budget of tokens.

    The longest rows come first, so that a batch that does not fit in memory fails at once.

    Args:
        lengths: number of tokens of each row.
        max_tokens: budget: number of rows of a batch times the length of its longest row.
        indices: rows to group; default: all.
        unit: for each row, the number of the unit that must stay together; default: every row alone.
        group: for each row, the number of a group that stays in one batch where the budget allows it, and is cut into
            even parts where it does not.

    Returns:
        Batches of row indices; a batch over the budget holds one unit only.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    units_by_number: dict[int, list[int]] = {}
    for row in range(len(lengths)) if indices is None else indices:
        units_by_number.setdefault(row if unit is None else int(unit[row]), []).append(row)
    group_of = [0] * len(lengths) if group is None else [int(number) for number in group]
    longest_of: dict[int, int] = {}
    for row, length in enumerate(lengths):
        longest_of[group_of[row]] = max(length, longest_of.get(group_of[row], 0))

    def order(rows: list[int]) -> tuple[int, int, int, list[int]]:
        longest_row, number = max(lengths[row] for row in rows), group_of[rows[0]]
        return -longest_of[number], number, -longest_row, rows

    units = sorted(units_by_number.values(), key=order)
    if group is not None:
        return _whole_groups(units, lengths, group_of, longest_of, max_tokens)
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
    group_of: Sequence[int],
    longest_of: dict[int, int],
    max_tokens: int,
) -> list[list[int]]:
    """Batches of whole groups; a group that is too large for one batch is cut into even parts."""
    batches: list[list[int]] = []
    longest = 0
    for number, group_units in itertools.groupby(units, key=lambda rows: group_of[rows[0]]):
        members = list(group_units)
        count = sum(map(len, members))
        if batches and (len(batches[-1]) + count) * longest <= max_tokens:
            batches[-1].extend(row for rows in members for row in rows)
            continue
        longest = longest_of[number]
        most = max(1, max_tokens // max(1, longest))
        even = math.ceil(count / math.ceil(count / most))
        part: list[int] = []
        for rows in members:
            if part and len(part) + len(rows) > even:
                batches.append(part)
                part = []
            part = [*part, *rows]
        batches.append(part)
    return batches
