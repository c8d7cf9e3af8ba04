"""What can be known of a stage's rows before anything is trained: which of them it can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Encoder, Format, encode_pairs, encode_prompts, for_trl, require
from ..data.inspect import captured_log, model_encoder
from ..data.rows import ROW
from ..engine import BaseSpec
from ..recipe import PreferenceStage, RewardModelStage, RlStage, SftStage
from ..recipe.schema import DatasetSource, Recipe, StageBase
from ..registry import Registry
from ..session.context import Context, split_rows


def check_rows(ctx: Context) -> None:
    """Encode the rows of the stages after the first one, which reads its own at once.

    What is left out is not said here: the stage says it when it reads the rows.

    Raises:
        DataError: a row is bad or does not fit the model, and the recipe does not say that such rows are left out.
    """
    for stage in ctx.recipe.stages[1:]:
        rows, held_out = split_rows(stage, ctx.registry, ctx.recipe.seed)
        for part, source in ((rows, stage.dataset), (held_out, stage.eval.dataset or stage.dataset)):
            if part is not None:
                name = source.path or str(source.name)
                format = require(part, method_of(stage), name, stage=stage.name, warn=False)
                with captured_log():
                    usable_rows(part, format, stage, source, ctx.encoder(source), ctx.registry)


def method_of(stage: StageBase) -> Any:
    """How a stage reads its rows, by the names of `data.formats`."""
    return stage.method if isinstance(stage, PreferenceStage) else getattr(stage, "stage", "")


def usable_rows(
    rows: Any, format: Format, stage: StageBase, source: DatasetSource, encoder: Encoder, registry: Registry
) -> int:
    """How many rows a stage can use.

    Args:
        rows: of the stage.
        format: of the rows, for this stage.
        stage: part of the recipe.
        source: where the rows are from.
        encoder: of the model.
        registry: makes the sampler, which says how long an answer may be.

    Raises:
        DataError: a row is bad, and the recipe does not say that such rows are left out.
    """
    how: dict[str, Any] = {
        "on_bad_row": source.on_bad_row,
        "on_long_row": source.on_long_row,
        "source": source.path or str(source.name),
        "stage": stage.name,
    }
    if isinstance(stage, RlStage):
        sampler = registry.make("samplers", stage.sampler.name, stage.sampler.options)
        try:
            return len(encode_prompts(rows, encoder, max_new_tokens=sampler.params.max_new_tokens, **how))
        finally:
            if hasattr(sampler, "close"):
                sampler.close()
    if isinstance(stage, RewardModelStage):
        return len(encode_pairs(rows, encoder, **how))
    if isinstance(stage, SftStage):
        how |= {"completion_only": stage.completion_only_loss, "assistant_only": stage.assistant_only_loss}
    return len(set(for_trl(rows, format, encoder, **how)[ROW]))


def offline_encoder(recipe: Recipe, source: DatasetSource) -> Encoder | None:
    """The encoder of a recipe's model for rows of that dataset; None where the model is not on this machine."""
    location = BaseSpec(recipe.model.path).location
    if not Path(location).is_dir():
        return None
    return model_encoder(
        location,
        recipe.model.max_length,
        chat_template_kwargs=recipe.model.chat_template_kwargs,
        system=source.system,
        truncation=source.on_long_row == "cut",
    )
