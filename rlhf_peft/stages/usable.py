"""How many rows of a dataset a stage can use, found out before anything is loaded but a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Format, encode_pairs, encode_prompts, for_trl
from ..data.inspect import model_encoder
from ..data.rows import ROW
from ..engine import Source
from ..recipe.schema import DatasetSource, Recipe, RewardModelStage, RlStage, SftStage, StageBase


def usable_rows(
    rows: Any, format: Format, stage: StageBase, source: DatasetSource, recipe: Recipe
) -> int | None:
    """How many rows a stage can train on, by the model's own tokenizer; None where the model is not on this machine.

    Raises:
        DataError: a row is bad, and the recipe does not say that such rows are left out.
    """
    model = Source(recipe.model.path)
    if not Path(model.location).is_dir():
        return None
    encoder = model_encoder(
        model.location,
        recipe.model.max_length,
        chat_template_kwargs=recipe.model.chat_template_kwargs,
        system=source.system,
        truncation=source.on_long_row == "cut",
    )
    how: dict[str, Any] = {
        "on_bad_row": source.on_bad_row,
        "on_long_row": source.on_long_row,
        "source": source.path or str(source.name),
        "stage": stage.name,
    }
    if isinstance(stage, RlStage):
        new = stage.sampler.options.get("max_new_tokens", 1)
        return len(encode_prompts(rows, encoder, max_new_tokens=int(new), **how))
    if isinstance(stage, RewardModelStage):
        return len(encode_pairs(rows, encoder, **how))
    if isinstance(stage, SftStage):
        how |= {"completion_only": stage.completion_only_loss, "assistant_only": stage.assistant_only_loss}
    return len(set(for_trl(rows, format, encoder, **how)[ROW]))
