"""How long the rows of a stage are: read from local data, else assumed, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Encoder
from ..engine import Source
from ..engine.source import load_config
from ..engine.tokenizer import load_tokenizer
from ..recipe import Recipe, RlStage, StageBase
from ..registry import Registry
from ..stages import read_source
from ..stages.trl_rows import longest_row

ASSUMED_PROMPT, ASSUMED_ROW = 512, 1024
PROBED = 64


def longest(
    stage: StageBase, recipe: Recipe, registry: Registry, source: Source, limit: int
) -> tuple[int, str]:
    """Tokens of the longest prompt (RL) or row of a stage, and where that is known from.

    Args:
        stage: whose dataset.
        recipe: with the model's settings.
        registry: for registered datasets.
        source: of the model, whose tokenizer is used if it is on this machine.
        limit: most tokens that there can be.

    Raises:
        DataError: the data is there and cannot be used.
    """
    local = stage.dataset.path is None or Path(stage.dataset.path).exists()
    if not local or not Path(source.location).is_dir():
        what, most = ("prompts", ASSUMED_PROMPT) if isinstance(stage, RlStage) else ("rows", ASSUMED_ROW)
        found = min(most, limit)
        return found, f"{stage.name}: {what} of {found} tokens are assumed; the data is not read"
    rows = read_source(stage.dataset, registry, stage=stage.name)
    tokenizer = load_tokenizer(source, load_config(source))
    kwargs = dict(recipe.model.chat_template_kwargs)
    encoder = Encoder(tokenizer, chat_template_kwargs=kwargs, system=stage.dataset.system)
    if isinstance(stage, RlStage):
        found = min(_longest_prompt(rows, encoder), limit)
        return found, f"{stage.name}: the longest prompt has {found} tokens"
    found = min(longest_row(rows, encoder), limit)
    return found, f"{stage.name}: the longest row has about {found} tokens"


def _longest_prompt(rows: Any, encoder: Encoder) -> int:
    """Of the rows with most characters, the most tokens."""
    name = "prompt" if "prompt" in rows.column_names else "chosen"
    sizes = [len(str(value)) for value in rows[name]]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)[-PROBED:]
    return max((len(encoder.prompt(row)) for row in rows.select(order)), default=1)
