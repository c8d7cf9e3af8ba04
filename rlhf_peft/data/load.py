"""Datasets from the hub, folders, files and plugins, as rows with numbers.

Single files go through our own readers (`files`), which name file and row when something is wrong; folders and the
hub through `datasets`.
"""

from __future__ import annotations

import difflib
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .files import SUFFIXES, brief, read_file
from .json_text import decode_conversation
from .rows import ROW, BadRows, OnBadRow, as_text, columns_of, override, quiet
from .table import make_dataset

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("rlhf_peft")

Columns = Mapping[str, str | Sequence[str]]

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_rows(
    *,
    path: str | Path | None = None,
    name: str | None = None,
    split: str = "train",
    columns: Columns | None = None,
    system: str | None = None,
    on_bad_row: OnBadRow = "error",
    loader: Any = None,
    stage: str | None = None,
) -> Dataset:
    """The rows of a dataset, with their numbers in the column `ROW`.

    Args:
        path: hub id, folder (data files, `Dataset.save_to_disk`, hub layout), or jsonl, json, csv, tsv, txt or
            parquet file.
        name: with `path`, the configuration name on the hub; without it, the loader's name in messages.
        split: split to read; slices and sums are allowed: `train[:90%]`, `train[:100]+test`.
        columns: renames columns: our name to the file's, or to a list of columns whose texts are joined.
        system: system message that examples will receive; rows of plain text are refused here.
        on_bad_row: "error" or "skip", for rows that cannot be read.
        loader: object with `rows()`, used instead of a path.
        stage: name of the stage, for the overrides that messages print.

    Raises:
        DataError: the dataset is missing, malformed or empty, or a split or column does not exist.
    """
    source = str(path if path is not None else name or "dataset")
    bad = BadRows(source, on_bad_row, stage)
    with quiet():
        if loader is not None:
            parts = {"train": make_dataset(loader_rows(loader, source), source, bad)}
        elif path is None:
            raise DataError("a dataset needs a `path` (hub id, folder or file) or a registered `name`.")
        else:
            parts = read_path(str(path), name, source, bad)
        rows = take_split(parts, split, source, stage)
        rows = rename(rows, columns or {}, source)
        if system is not None:
            check_system(rows, source)
        return rows


def loader_rows(loader: Any, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a registered dataset with their numbers."""
    for number, row in enumerate(loader.rows(), start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{source}, row {number:,}: the dataset gave {type(row).__name__}, not a mapping."
            )
        yield number, dict(row)


def read_path(path: str, name: str | None, source: str, bad: BadRows) -> dict[str, Dataset]:
    """Read every split at a path; returns them by name."""
    local_path = Path(path).expanduser()
    if local_path.is_file():
        parts = read_file(local_path, source, bad)
        return {"train": parts if local_path.suffix.lower() != ".parquet" else without_numbers(parts)}
    if local_path.is_dir():
        return read_folder(local_path, name, source, bad)
    if looks_local(path):
        raise DataError(missing(local_path, source, bad.stage))
    return read_hub(path, name, local_path)


def looks_local(path: str) -> bool:
    """Whether a path that does not exist was meant as a file or folder, not as a hub id."""
    return not HUB_ID.fullmatch(path) or path.startswith(".") or path.lower().endswith(SUFFIXES)


def missing(local_path: Path, source: str, stage: str | None = None) -> str:
    """Message for a file that does not exist, with the most similar name beside it."""
    text = f"{source}: no such file or folder (looked at {local_path.absolute()})"
    folder = local_path.parent
    if not folder.is_dir():
        text = f"{text}; the folder {folder.absolute()} does not exist either"
        return f"{text}. Say where it is: {override(stage, 'path=...')}"
    near = difflib.get_close_matches(local_path.name, sorted(item.name for item in folder.iterdir()), n=1)
    if near:
        return f"{text}. Did you mean {folder / near[0]}?"
    return f"{text}. Say where it is: {override(stage, 'path=...')}"


def read_folder(folder: Path, name: str | None, source: str, bad: BadRows) -> dict[str, Dataset]:
    """Read a folder of data files, or one that `save_to_disk` wrote."""
    import datasets

    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return as_splits(datasets.load_from_disk(str(folder)))
        return as_splits(datasets.load_dataset(str(folder), name))
    except Exception as error:  # whatever a loader of many formats may raise
        for file in sorted(item for item in folder.rglob("*") if item.suffix.lower() in SUFFIXES):
            read_file(file, str(file), BadRows(str(file), can_skip=False))
        raise DataError(f"{source}: the folder cannot be read as a dataset ({brief(error)}).") from error


def read_hub(path: str, name: str | None, local_path: Path) -> dict[str, Dataset]:
    """Read a dataset of the hub; the DataError says what to type instead."""
    import datasets

    try:
        return as_splits(datasets.load_dataset(path, name))
    except Exception as error:  # network, authentication, format: anything
        offline = isinstance(error, ConnectionError | TimeoutError)
        why = "the Hugging Face hub cannot be reached" if offline else "the hub gave no dataset"
        raise DataError(
            f"{path}: no such file or folder (looked at {local_path.absolute()}), and as a hub id: {why} "
            f"({brief(error)}). Check the name, or give a local copy: path=./data/{local_path.name}.jsonl "
            "(jsonl, json, csv, parquet, or a folder of them)."
        ) from error


def as_splits(loaded: Any) -> dict[str, Dataset]:
    """Splits by name, for a dataset with or without splits."""
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(key): without_numbers(value) for key, value in parts.items()}


def without_numbers(dataset: Dataset) -> Dataset:
    """The dataset without a user's column that has the reserved name `ROW`."""
    if ROW not in dataset.column_names:
        return dataset
    log.warning("the column %s is left out; its name is used for the numbers of rows", ROW)
    return dataset.remove_columns(ROW)


def take_split(splits: dict[str, Dataset], split: str, source: str, stage: str | None = None) -> Dataset:
    """The rows of a split instruction, each with its number in the whole split."""
    import datasets

    sizes = {key: len(value) for key, value in splits.items()}
    available = as_text(f"{key} ({size:,} rows)" for key, size in sizes.items())
    remedy = override(stage, "split=..." if any(sizes.values()) else "path=...")
    available = f"{available}. Name one with rows: {remedy}"
    pieces = []
    for key, start, stop in split_pieces(split, sizes, source, available):
        pieces.append(with_numbers(splits[key]).select(range(start, stop) if start < stop else []))
    rows = pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces)
    if len(pieces) > 1:  # numbers of different splits may coincide
        rows = with_numbers(rows.remove_columns(ROW))
    if len(rows) == 0:
        raise DataError(f"{source}: split {split!r} is empty. Splits: {available}")
    return rows


def split_pieces(
    split: str, sizes: Mapping[str, int], source: str, available: str
) -> list[tuple[str, int, int]]:
    """Name, start and stop of each part that a split instruction names."""
    import datasets

    if split in sizes:
        return [(split, 0, sizes[split])]
    try:
        pieces = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        unknown = "Unknown split" in str(error)
        what = "there is no such split" if unknown else "slices are written train[:90%] or train[:200]"
        raise DataError(f"{source}: split {split!r}: {what}. Splits: {available}") from error
    return [(piece.splitname, piece.from_, piece.to) for piece in pieces]


def with_numbers(dataset: Dataset) -> Dataset:
    """The dataset with the column `ROW`, counted from 1 if a reader gave none."""
    if ROW in dataset.column_names:
        return dataset
    return dataset.with_format(None).add_column(ROW, list(range(1, len(dataset) + 1)))


def rename(dataset: Dataset, columns: Columns, source: str) -> Dataset:
    """Rename columns; a column that already has one of the new names is removed.

    Args:
        dataset: the rows.
        columns: our column to the file's, or to several whose texts are joined by an empty line.
        source: name of the dataset in messages.

    Raises:
        DataError: a column does not exist, or one of several that are to be joined holds no text.
    """
    import datasets

    if not columns:
        return dataset
    names = columns_of(dataset)
    sources = {
        ours: [theirs] if isinstance(theirs, str) else list(theirs) for ours, theirs in columns.items()
    }
    for ours, theirs in sources.items():
        check_columns(ours, theirs, names, source)
    parts = []
    for ours, theirs in sources.items():
        part = dataset.select_columns(theirs)
        if len(theirs) > 1:
            part = join_columns(part, ours, source)
        elif theirs != [ours]:
            part = part.rename_column(theirs[0], ours)
        parts.append(part)
    replaced = {*sources, *(column for theirs in sources.values() for column in theirs)}
    parts.append(dataset.remove_columns([column for column in names if column in replaced]))
    whole = datasets.concatenate_datasets(parts, axis=1)
    whole.info.description = dataset.info.description
    return whole


def check_columns(ours: str, theirs: Sequence[str], available: Sequence[str], source: str) -> None:
    """Raise DataError for a column that the file does not have."""
    for column in theirs:
        if column not in available:
            near = difflib.get_close_matches(column, available, n=1, cutoff=0.5)
            hint = f" Did you mean {{{ours}: {near[0]}}}?" if near else ""
            raise DataError(
                f"{source}: dataset.columns maps {ours} to {column}, which is not among the columns found: "
                f"{as_text(available)}.{hint}"
            )


def join_columns(dataset: Dataset, ours: str, source: str) -> Dataset:
    """Join the texts of all columns into one column, with an empty line between those that are not blank."""
    import datasets

    texts = []
    for number, row in enumerate(dataset, start=1):
        values = [value for value in row.values() if value is not None]
        if not all(isinstance(value, str) for value in values):
            raise DataError(
                f"{source}, row {number:,}: {', '.join(row)} are joined to {ours}, and must hold text."
            )
        texts.append("\n\n".join(value for value in values if value.strip()))
    return datasets.Dataset.from_dict(
        {ours: texts}, features=datasets.Features({ours: datasets.Value("string")})
    )


def check_system(dataset: Dataset, source: str) -> None:
    """Raise DataError if a system message is given for rows of plain text, which have no place for it."""
    first = dataset[0]
    columns = [
        name for name in ("prompt", "messages", "conversations", "chosen", "rejected") if name in first
    ]
    if columns and not any(isinstance(decode_conversation(first[name], name), list) for name in columns):
        raise DataError(
            f"{source}: a system message needs conversations, but column {columns[0]} holds plain text. Leave "
            'dataset.system out, or write the rows as messages: [{"role": "user", "content": ...}].'
        )


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Split a dataset into rows to train on and rows held out; the same seed gives the same rows.

    Args:
        dataset: the rows.
        fraction: fraction held out; at least one row unless it is 0.
        seed: seed of the random choice.

    Returns:
        Both parts in the order of the dataset; the second is None if the fraction is 0.

    Raises:
        DataError: nothing would be left to train on.
    """
    if fraction <= 0:
        return dataset, None
    count = max(1, round(len(dataset) * fraction))
    if count >= len(dataset):
        raise DataError(f"eval_fraction={fraction} of {len(dataset):,} rows leaves none to train on.")
    order = list(range(len(dataset)))
    random.Random(f"hold out {seed}").shuffle(order)
    return dataset.select(sorted(order[count:])), dataset.select(sorted(order[:count]))
