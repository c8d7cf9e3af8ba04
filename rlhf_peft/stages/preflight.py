"""Prompts that do not fit the model are refused before the first stage, and not after earlier stages have trained."""

from __future__ import annotations

from ..data import encode_prompts
from ..recipe import RlStage
from .context import Context, split_rows


def check_prompts(ctx: Context) -> None:
    """Encode the prompts of the stages after the first one, which reads its own at once.

    Raises:
        DataError: one does not fit the model with the answer that it is to get.
    """
    for stage in ctx.recipe.stages[1:]:
        if not isinstance(stage, RlStage):
            continue
        rows, held_out = split_rows(stage, ctx.registry, ctx.recipe.seed)
        sampler = ctx.registry.make("samplers", stage.sampler.name, stage.sampler.options)
        for part, source in ((rows, stage.dataset), (held_out, stage.eval.dataset or stage.dataset)):
            if part is not None:
                encode_prompts(
                    part,
                    ctx.encoder(stage.dataset),
                    max_new_tokens=sampler.params.max_new_tokens,
                    on_bad_row=stage.dataset.on_bad_row,
                    source=source.path or str(source.name),
                    stage=stage.name,
                )
        if hasattr(sampler, "close"):
            sampler.close()
