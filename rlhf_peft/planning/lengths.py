"""How long the rows of a stage are: read from local data, or else assumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data import Encoder, example, require
from ..data.calls import tools_in_row
from ..data.examples import prompt_of
from ..data.formats import Method
from ..data.inspect import model_encoder
from ..data.rows import BadRow, numbered
from ..engine import BaseSpec
from ..recipe import PreferenceStage, Recipe, RewardModelStage, RlStage, StageBase
from ..registry import Registry
from ..session.context import split_rows
from ..stages import read_source

ASSUMED_PROMPT, ASSUMED_ROW = 512, 1024
PROBED = 64


def longest(
    stage: StageBase, recipe: Recipe, registry: Registry, source: BaseSpec, limit: int
) -> tuple[int, str]:
    """Tokens of the longest prompt (RL) or row of a stage, and a note on how that is known.

    Args:
        stage: its dataset is read.
        recipe: has the model's settings.
        registry: makes registered datasets.
        source: the model, whose tokenizer is used if it is on this machine.
        limit: most tokens that a row can have.

    Raises:
        DataError: the data is there and cannot be used.
    """
    local = stage.dataset.path is None or Path(stage.dataset.path).exists()
    if not local or not Path(source.location).is_dir():
        kind, most = ("prompts", ASSUMED_PROMPT) if isinstance(stage, RlStage) else ("rows", ASSUMED_ROW)
        most_tokens = min(most, limit)
        return most_tokens, f"{stage.name}: {kind} of {most_tokens} tokens are assumed; the data is not read"
    rows = read_source(stage.dataset, registry, stage=stage.name)
    kwargs = dict(recipe.model.chat_template_kwargs)
    encoder = model_encoder(
        source.location, chat_template_kwargs=kwargs, system=stage.dataset.system
    ).without_limit()
    if isinstance(stage, RlStage):
        most_tokens = min(_most_tokens(rows, lambda row: [_prompt(row, encoder)]), limit)
        return most_tokens, f"{stage.name}: the longest prompt has {most_tokens} tokens"
    method: Method = "reward_model" if isinstance(stage, RewardModelStage) else "sft"
    method = stage.method if isinstance(stage, PreferenceStage) else method
    format = require(
        rows, method, str(stage.dataset.path or stage.dataset.name), stage=stage.name, warn=False
    )

    def row_tokens(row: dict[str, Any]) -> list[list[int]]:
        texts = example(row, format, words=True)
        return list(encoder.pair(texts)) if "chosen" in texts else [encoder.completion(texts)]

    most_tokens = min(_most_tokens(rows, row_tokens), limit)
    return most_tokens, f"{stage.name}: the longest row has about {most_tokens} tokens"


def evaluated(stage: RlStage, recipe: Recipe, registry: Registry) -> int:
    """How many prompts an evaluation of an RL stage answers at once; 0 where there is none.

    They are `eval.size` held-out prompts, or as many as there are, or the lines of `eval.prompts`. Data that is not on
    this machine is assumed to have enough prompts.

    Raises:
        DataError: the data is there and cannot be used.
    """
    file = stage.eval.prompts
    fixed = len(Path(file).read_text(encoding="utf-8").splitlines()) if file and Path(file).is_file() else 0
    source = stage.eval.dataset or stage.dataset
    if not (stage.eval.dataset or stage.eval.split or stage.dataset.eval_fraction):
        return fixed
    if source.path is not None and not Path(source.path).exists():
        return max(fixed, stage.eval.size)
    _, held_out = split_rows(stage, registry, recipe.seed)
    return max(fixed, min(stage.eval.size, 0 if held_out is None else len(held_out)))


def _prompt(row: dict[str, Any], encoder: Encoder) -> list[int]:
    return encoder.prompt({"prompt": prompt_of(row), "tools": tools_in_row(row)})


def _most_tokens(rows: Any, tokens: Callable[[dict[str, Any]], list[list[int]]]) -> int:
    """The most tokens of a row, among the rows with most characters; rows that cannot be used are left out."""
    sizes = [sum(len(str(value)) for value in row.values()) for _, row in numbered(rows)]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)[-PROBED:]
    most = 1
    for _, row in numbered(rows.select(order)):
        with suppress(BadRow):
            most = max(most, *map(len, tokens(row)))
    return most
