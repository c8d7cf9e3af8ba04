"""Decodes with transformers' continuous batching: over a paged cache, a row that ends makes room for the next at once.

Meant for many rows of very different lengths. Tokens are drawn as everywhere here, from each row's own random
numbers, by taking the place of the manager's logits processors; that needs its plain loop, without CUDA graphs and
without batches in flight. A row that a stop string ended is given EOS at its next step.

Tried on CPUs with transformers 5.23, where it gives what `cached` gives, slower; not yet on a GPU. The attention of the
model must be `sdpa`, `eager` or flash, and is left as it is, for a switch to flash may fetch kernels. Models that
keep a state have no pages and are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from rlhf_peft.plugin import PolicyView, SamplerError, argument_name, arguments_of, keeps_state

from .draw import Knobs, draw
from .hf import generation_config
from .local import LocalSampler
from .options import SamplingOptions
from .rows import Row

ADVICE = "Use sampler.name=cached."
PREFILL = 1024
"""Most tokens of one forward; longer prompts are read in several."""


class ContinuousOptions(SamplingOptions):
    """How completions are drawn, and how many at once."""

    max_rows: int = Field(256, gt=0, le=2**20, description="Most rows decoded at once.")
    page_size: int = Field(32, ge=4, le=2**16, description="Tokens of one page of the cache.")


class ContinuousSampler(LocalSampler):
    """Writes completions with a continuous-batching manager."""

    Options = ContinuousOptions
    name = "continuous"

    def __init__(self, options: ContinuousOptions) -> None:
        super().__init__(options)
        self.options = options

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end, all in one queue.

        Raises:
            SamplerError: the model or this transformers cannot do it, or it failed on the way.
        """
        kind = type(model).__name__
        if keeps_state(model) or not hasattr(model, "init_continuous_batching"):
            raise SamplerError(
                f"sampler continuous: {kind} cannot be batched continuously. Use sampler.name=hf."
            )
        try:
            manager = self._manager(model, view, rows)
        except Exception as error:
            raise SamplerError(
                f"sampler continuous: {kind} could not be prepared: {type(error).__name__}: {error} {ADVICE}"
            ) from error
        cuda = [view.device] if view.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # the manager seeds torch's global stream
            manager.start()
            try:
                _serve(manager, view, rows)
            finally:
                manager.stop(block=True, hard_stop=True)
                manager.destroy()

    def _manager(self, model: Any, view: PolicyView, rows: list[Row]) -> Any:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        eos = sorted(view.eos_ids) or -1
        plain = GenerationConfig(do_sample=False, eos_token_id=eos, pad_token_id=view.pad_id)
        most = min(len(rows), self.options.max_rows)
        longest = max(len(row.request.prompt_ids) + row.room for row in rows)
        # transformers 5.18 renamed `block_size`; 5.19 or 5.20 brought `auto_switch_to_flash`, which is not wanted here.
        known: dict[str, Any] = {
            argument_name(ContinuousBatchingConfig, "page_size", "block_size"): self.options.page_size
        }
        if "auto_switch_to_flash" in arguments_of(ContinuousBatchingConfig):
            known["auto_switch_to_flash"] = False
        paging = ContinuousBatchingConfig(
            num_blocks=most * (longest // self.options.page_size + 1),
            max_batch_tokens=max(PREFILL, most),
            max_requests_per_batch=most,
            use_cuda_graph=False,
            use_async_batching=False,
            **known,
        )
        with generation_config(model, plain):
            manager = model.init_continuous_batching(plain, paging)
        manager.logit_processor = _processors(rows, view)
        return manager


def _serve(manager: Any, view: PolicyView, rows: list[Row]) -> None:
    """Queue all rows and wait for them; like prompts follow one another, so that they may share pages."""
    for i in sorted(range(len(rows)), key=lambda i: rows[i].request.prompt_ids.tolist()):
        manager.add_request(rows[i].request.prompt_ids.tolist(), str(i), max_new_tokens=rows[i].room)
    waiting = len(rows)
    while waiting:
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise SamplerError(f"sampler continuous: transformers' generation loop ended too early. {ADVICE}")
        if result is not None and result.error is not None:
            raise SamplerError(f"sampler continuous: transformers stopped a row: {result.error} {ADVICE}")
        if result is not None and result.is_finished():
            waiting -= 1
            _check(rows[int(result.request_id)], result.generated_tokens)


def _check(row: Row, generated: list[int]) -> None:
    """Raise SamplerError unless the manager's tokens are the row's; after a stop string its EOS follows."""
    if row.finish is None or generated[: len(row.tokens)] != row.tokens:
        raise SamplerError(f"sampler continuous: transformers lost a token of a row. {ADVICE}")


def _processors(rows: list[Row], view: PolicyView) -> Any:
    """What the manager calls in place of its logits processors: it draws a token for each row of the present batch."""
    from transformers import LogitsProcessorList
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessorList,
    )

    streams = [row.stream() for row in rows]
    end = min(view.eos_ids, default=0)

    class RowDraws(ContinuousBatchingLogitsProcessorList):
        present: list[int]

        def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Any) -> Any:
            self.present = [int(r.state.request_id) for r in requests_in_batch if r.has_new_token]
            return arg_storage

        def __call__(self, input_ids: Any, scores: Any, logits_processor_args: Any) -> Any:
            here = [rows[i] for i in self.present]
            u = torch.stack([streams[i][min(len(rows[i].tokens), rows[i].room - 1)] for i in self.present])
            knobs = Knobs.of([row.request.params for row in here], scores.device)
            tokens, logps = draw(scores[: len(here)], u.to(scores.device), knobs)
            over = torch.tensor([row.finish is not None for row in here], device=scores.device)
            for row, token, logp in zip(here, tokens.tolist(), logps.tolist(), strict=True):
                row.take(token, logp, view)
            chosen = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
            chosen[: len(here)] = torch.where(over, end, tokens)
            return torch.full_like(scores, -torch.inf).scatter_(-1, chosen.unsqueeze(-1), 0.0)

    made = RowDraws(LogitsProcessorList())
    made.do_processing = True
    return made
