"""Answers to a file of fixed prompts while a stage trains: what the model says is seen, not only its curves."""

from __future__ import annotations

from collections.abc import Sequence

from ..data import Prompt, encode_prompts, load_rows
from ..hookspecs import Sampler
from ..recipe.schema import PolicyStage
from ..registry import DEFAULT_SAMPLER
from ..types import Request
from .context import Context
from .policy_view import BaseView
from .sampling import prompts_at_once, sample


class FixedPrompts:
    """Answers the prompts of `eval.prompts`, one a line, with the same seeds each time.

    Where the tokenizer has a chat template, each line is a user's message.

    Args:
        stage: part of the recipe; without `eval.prompts` nothing is ever answered.
        ctx: the run.
        sampler: writes the answers; default: `DEFAULT_SAMPLER` with its defaults.

    Raises:
        DataError: the file is missing or empty, or a prompt does not fit the model.
    """

    def __init__(self, stage: PolicyStage, ctx: Context, sampler: Sampler | None = None) -> None:
        self.stage, self.ctx, self.budget = stage, ctx, prompts_at_once(stage.name)
        self.prompts: Sequence[Prompt] = []
        if stage.eval.prompts is None or not ctx.ranks.main:
            return
        self.sampler = sampler or ctx.registry.make("samplers", DEFAULT_SAMPLER)
        rows = load_rows(path=stage.eval.prompts, columns={"prompt": "text"}, stage=stage.name)
        if ctx.base.tokenizer.chat_template:
            rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
        self.prompts = encode_prompts(
            rows,
            ctx.encoder(stage.dataset),
            max_new_tokens=1,
            source=stage.eval.prompts,
            stage=stage.name,
        )

    def at(self, step: int) -> None:
        """Answer them if `eval.every` says so."""
        if self.stage.eval.due(step):
            self.answer(step)

    def answer(self, step: int) -> None:
        """Answer them now, into samples.jsonl."""
        if not self.prompts:
            return
        view, seed = BaseView(self.ctx.base), self.ctx.seed
        self.sampler.sync(view, step)
        requests = [
            Request(p.ids, i, seed(self.stage.name, "prompts", i), self.sampler.params, columns=p.columns)
            for i, p in enumerate(self.prompts)
        ]
        rollout = sample(self.sampler, requests, self.budget)
        self.ctx.samples(
            [
                {
                    "stage": self.stage.name,
                    "step": step,
                    "split": "prompts",
                    "prompt": prompt,
                    "completion": view.decode(rollout.completion_ids(i)),
                    "finish": rollout.finish[i],
                }
                for i, prompt in enumerate(rollout.columns["prompt"])
            ]
        )
