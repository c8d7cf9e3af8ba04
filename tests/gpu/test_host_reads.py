"""How often the host waits for a card: not in a decoding step, and at each eighth decoded token.

`torch.cuda.set_sync_debug_mode` makes torch complain of every wait: of reads, and of copies to the card from memory
that is not pinned. The dry run counts reads only. On a CPU there is neither; the same code runs there.
"""

import warnings
from contextlib import contextmanager

import pytest
import torch

from rlhf_peft.engine import POLICY
from rlhf_peft.kit.sampling.drawing import DrawOptions, draw
from rlhf_peft.kit.sampling.local import READ_EVERY, write_rows
from rlhf_peft.kit.sampling.rows import start_rows, streams
from rlhf_peft.session.policy_view import BaseView
from rlhf_peft.stages.rl import update
from tests.dryrun.cases import rl, write_files
from tests.gpu.support import base_of, requests, run

pytestmark = pytest.mark.gpu
STARTING = 24
"""Waits that a batch of rows may take besides those of its tokens: for random numbers and options, which are copied."""
MICRO_STEP = 16
"""Waits that a micro-step may take: a read of transformers, and 11 copies of what PPO is trained on."""


@contextmanager
def no_reads(device):
    """An operation that waits for the card raises."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_reads(device):
    """A list that grows by one text with each operation that waits for the card."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        reads = Reads(caught)
        try:
            yield reads
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


class Reads:
    """The reads among some warnings."""

    def __init__(self, caught):
        self._caught = caught

    def __len__(self):
        return len(self.places())

    def places(self):
        """File and line of each."""
        return [
            f"{warning.filename}:{warning.lineno}"
            for warning in self._caught
            if "synchronizing" in str(warning.message)
        ]


def started(base, tokens):
    """A view of the policy, and rows that each take so many tokens."""
    view = BaseView(base)
    view.eos_ids = frozenset()
    asked = requests(prompts=2, rows=2, tokens=tokens + 3)
    return view, start_rows(asked, view.max_length, "test")


@pytest.mark.parametrize(("quantization", "merge"), [("nf4", False), ("nf4", True), ("none", False)])
def test_none_in_a_decoding_step(quantization, merge, device, model_of):
    base = base_of(model_of(num_hidden_layers=2), device, quantization)
    _, rows = started(base, 4 * READ_EVERY)
    with base.decoding.as_role(POLICY, merge) as model:
        for _ in range(2):  # The first time fast paths are compared.
            decoder = model.start([row.request.prompt_ids.tolist() for row in rows], 4 * READ_EVERY)
            uniforms = streams(rows, device)
            options = DrawOptions.of([row.request.params for row in rows], device)
            logits = decoder.step(draw(decoder.logits, uniforms[0], options)[0])
        with no_reads(device):
            for t in range(READ_EVERY):
                logits = decoder.step(draw(logits, uniforms[t], options)[0])
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_one_for_every_eighth_token(quantization, device, model_of, write_down):
    base = base_of(model_of(num_hidden_layers=2), device, quantization)
    counts = {}
    for tokens in (
        2 * READ_EVERY,
        2 * READ_EVERY,
        10 * READ_EVERY,
    ):  # The first time fast paths are compared.
        view, rows = started(base, tokens)
        with base.decoding.as_role(POLICY) as model:
            decoder = model.start([row.request.prompt_ids.tolist() for row in rows], tokens + 3)
            with counted_reads(device) as reads:
                write_rows(decoder, view, rows)
        counts[tokens] = len(reads)
    write_down(reads=counts, places=sorted(set(reads.places())))
    assert counts[2 * READ_EVERY] <= STARTING
    assert counts[10 * READ_EVERY] - counts[2 * READ_EVERY] <= 10


def test_few_in_a_micro_step(device, tmp_path, model_of, monkeypatch, write_down):
    write_files(tmp_path)
    recipe = rl({"name": "ppo", "value": "policy", "num_epochs": 2}, max_steps=2)(tmp_path)
    recipe["model"]["path"] = str(model_of(num_hidden_layers=2))
    micro_step, counts, places = update.Updater.micro_step, [], set()

    def counted(self, *given):
        with counted_reads(device) as reads:
            micro_step(self, *given)
        counts.append(len(reads))
        places.update(reads.places())

    monkeypatch.setattr(update.Updater, "micro_step", counted)
    run(recipe, device)
    write_down(reads=counts, places=sorted(places))
    assert len(counts) >= 2 and counts[-1] <= MICRO_STEP
