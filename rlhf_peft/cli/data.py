"""`rlhf-peft data`: describe a dataset before anything is trained on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import Json, Verbose

if TYPE_CHECKING:
    from ..data.inspect import Inspection

BARS = 12
WIDTH = 40
LETTERS = 400


def data(
    source: Annotated[
        str, typer.Argument(metavar="FILE|HUB_ID", help="A file, a folder or a dataset of the hub.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="Count in its tokens, and see what its context cuts."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split, slices too.")] = "train",
    name: Annotated[str | None, typer.Option("--name", help="Configuration on the hub.")] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="YAML", help="Our columns to the file's: '{prompt: Question}'."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Format, rows, duplicates, lengths, length bias, and which method suits. Exit 1 where rows cannot be used."""
    from ..data.inspect import inspect, model_encoder
    from .progress import row_progress

    mapping = None if columns is None else _mapping(columns)
    with row_progress(as_json=as_json):
        inspection = inspect(
            source,
            split=split,
            name=name,
            columns=mapping,
            encoder=None if model is None else model_encoder(_location(model)),
            model=model,
        )
    if as_json:
        print(json.dumps(inspection.plain(), indent=2, ensure_ascii=False))
    else:
        show(inspection)
    if inspection.bad or inspection.format is None:
        raise typer.Exit(1)


def _location(model: str) -> str:
    from ..engine import BaseSpec

    return BaseSpec(model).location


def _mapping(text: str) -> dict[str, str | list[str]]:
    import yaml

    try:
        mapping = yaml.safe_load(text)
    except yaml.YAMLError:
        mapping = None
    if not isinstance(mapping, dict):
        raise UsageError(
            f"--columns {text}: expected a mapping such as '{{prompt: Question, chosen: Good}}'."
        )
    return {
        str(ours): [str(name) for name in theirs] if isinstance(theirs, list) else str(theirs)
        for ours, theirs in mapping.items()
    }


def show(inspection: Inspection) -> None:
    """Print what the inspection of a dataset found on stdout."""
    kind = "not a TRL format" if inspection.format is None else inspection.format.kind.replace("_", " ")
    how = " (conversational)" if inspection.format is not None and inspection.format.conversational else ""
    print(
        f"{inspection.source}: {inspection.rows:,} rows; format: {kind}{how}; columns: {', '.join(inspection.columns)}"
    )
    for note in inspection.notes:
        print(f"note: {note}")
    for name, bad in inspection.bad.items():
        print(f"unusable: {bad.count:,} {name} (first: row {bad.first:,}: {bad.reason})")
    if inspection.duplicates:
        rows = "row repeats an earlier one" if inspection.duplicates == 1 else "rows repeat earlier ones"
        print(f"duplicates: {inspection.duplicates:,} {rows}")
    if inspection.unread:
        print(f"not read: the columns {', '.join(inspection.unread)} (an rl stage gives them to its rewards)")
    for part, values in inspection.lengths.items():
        histogram(part, values, inspection.unit)
    if inspection.limit is not None:
        cut = (
            f"{inspection.too_long:,} rows are longer than the context of {inspection.limit:,} tokens"
            if inspection.too_long
            else ""
        )
        print(cut or f"every row fits the context of {inspection.limit:,} tokens")
    if inspection.longer_chosen is not None:
        print(f"length bias: chosen is longer in {inspection.longer_chosen:.0%} of pairs")
    show_example(inspection)
    for line in inspection.advice:
        print(line if line.startswith(" ") else f"advice: {line}")


def show_example(inspection: Inspection) -> None:
    """Print the first usable row as a stage would read it."""
    if not inspection.example:
        return
    how = (
        "as it is trained on"
        if inspection.unit == "tokens"
        else "as it is read; --model shows it as it is trained on"
    )
    print(f"row {inspection.example['row']:,}, {how}:")
    for part, text in inspection.example.items():
        if part != "row":
            short = text if len(text) <= LETTERS else f"{text[:LETTERS]}… ({len(text):,} letters)"
            print(f"  {part}: {json.dumps(short, ensure_ascii=False)}")


def histogram(part: str, values: list[int], unit: str) -> None:
    """Print the distribution of lengths as bars of text."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    median, most = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    print(f"{part}: {low:,} to {high:,} {unit}, median {median:,}, 95th percentile {most:,}")
    width = max(1, -(-(high - low + 1) // BARS))
    counts: dict[int, int] = {}
    for value in values:
        counts[(value - low) // width] = counts.get((value - low) // width, 0) + 1
    top = max(counts.values())
    for number in range(max(counts) + 1):
        count, first = counts.get(number, 0), low + number * width
        bar = "#" * max(1 if count else 0, round(WIDTH * count / top))
        print(f"  {first:>7,} to {first + width - 1:<7,} {bar} {count:,}".rstrip())
