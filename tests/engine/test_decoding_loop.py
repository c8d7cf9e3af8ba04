"""Steps and draws as one captured function write the same tokens as one after the other."""

import logging
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from rlhf_peft.engine import POLICY, LoraSpec, decoding_loop
from rlhf_peft.engine.decoding import RowDecoder
from rlhf_peft.engine.decoding_loop import Capturing
from rlhf_peft.engine.fast import FastPaths
from rlhf_peft.engine.fast.lean import LeanDecoder, needs_no_host, own_tokens
from rlhf_peft.engine.fast.lean.architecture import base_of as base_layer
from rlhf_peft.engine.fast.lean.row_vectors import RowVectors
from rlhf_peft.kit.sampling import start_rows, write_rows
from rlhf_peft.session.policy_view import BaseView
from rlhf_peft.types import Request, SamplingParams

from ..builtin.samplers.support import MIXED
from .recorded_graphs import RecordedGraphs
from .support import load, stir, tokens

PROMPTS = [tokens(1, length, seed=length)[0] for length in (5, 9, 5)]
LIKE = {
    "even": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "uneven": [2, 1, 0, 0, 1, 2, 2, 1, 1, 1, 0, 1],
    "one prompt": [1] * 7,
    "each its own": [0, 1, 2],
    "alone": [1],
}
LENGTHS = [24, 3, 9, 40, 6, 17, 30]
"""Rows end at different steps."""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Graphs are captured often, for few steps."""
    monkeypatch.setattr(own_tokens, "SPARED", 1)
    monkeypatch.setattr(decoding_loop, "WORTH", 3)


def rows_of(view, which, temperature=1.0, mixed=False):
    out = []
    for i, prompt in enumerate(which):
        params = SamplingParams(LENGTHS[i % 7], temperature, **(MIXED[i % 5] if mixed else {}))
        out.append(Request(PROMPTS[prompt], prompt, 50 + i, params))
    return start_rows(out, view.max_length, "test")


def written(base, rows, capturing, every=4):
    view = BaseView(base)
    with base.decoding.as_role(POLICY, merge=False) as model:
        room = max(row.room for row in rows)
        read = model._read([row.request.prompt_ids.tolist() for row in rows])
        stepper = LeanDecoder(model.lm, read.cache, read.mask, read.which, room, RowVectors())
        lengths = read.mask.sum(-1)[read.which]
        given = (stepper, read.logits[read.which], lengths, base.max_length, capturing)
        write_rows(RowDecoder(*given), view, rows, read_every=every)
    return rows


def is_same(rows, others, bound):
    for mine, other in zip(rows, others, strict=True):
        assert mine.tokens == other.tokens and mine.finish == other.finish
        assert torch.allclose(torch.tensor(mine.logps), torch.tensor(other.logps), atol=bound)


def capturing(graphs=None, fast=None):
    return Capturing(graphs or RecordedGraphs(), fast or FastPaths(), "weights")


@pytest.fixture(scope="module")
def base_of(folder_of):
    bases = {}

    def made(name="llama", quantization="none", dtype="float32"):
        key = name, quantization, dtype
        if key not in bases:
            bases[key] = load(folder_of(name), quantization, LoraSpec(r=4, alpha=6.0), compute_dtype=dtype)
            stir(bases[key], POLICY)
        return bases[key]

    return made


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("which", LIKE)
def test_the_tokens_are_the_same(base_of, name, quantization, dtype, bound, which):
    base, graphs = base_of(name, quantization, dtype), RecordedGraphs()
    view = BaseView(base)
    expected = written(base, rows_of(view, LIKE[which]), None)
    is_same(written(base, rows_of(view, LIKE[which]), capturing(graphs)), expected, bound)
    assert graphs.captured <= 8 and graphs.replayed > 5


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_so_are_those_of_truncated_sampling(base_of, temperature):
    base = base_of()
    view = BaseView(base)
    given = (view, LIKE["uneven"], temperature, True)
    is_same(written(base, rows_of(*given), capturing()), written(base, rows_of(*given), None), 1e-4)


@pytest.mark.parametrize("every", [1, 8, 100])
def test_it_makes_no_difference_when_they_are_read(base_of, every):
    base = base_of()
    view = BaseView(base)
    expected = written(base, rows_of(view, LIKE["uneven"]), None)
    is_same(written(base, rows_of(view, LIKE["uneven"]), capturing(), every), expected, 1e-4)


def test_a_graph_for_each_size_and_each_reach(base_of):
    base, graphs = base_of(), RecordedGraphs()
    rows = rows_of(BaseView(base), LIKE["uneven"])
    sizes, keep = [len(rows)], RowDecoder.keep

    def keeps(self, rows):
        sizes.append(len(rows))
        keep(self, rows)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RowDecoder, "keep", keeps)
        written(base, rows, capturing(graphs), every=1)
    assert len(sizes) >= 3
    for before, size in pairwise(sizes):
        assert (size - 1).bit_length() < (before - 1).bit_length()
    assert graphs.captured <= len(sizes) + len(own_tokens._halves(40, 1)) - 1
    assert graphs.captured + graphs.replayed < 40


def heard(caplog):
    logging.getLogger("rlhf_peft").propagate = True
    return caplog.at_level("INFO", "rlhf_peft")


@pytest.mark.parametrize("breaks", [1, 2, 3])
def test_a_capture_that_fails_is_said_once_and_the_same_tokens_are_written(base_of, caplog, breaks):
    base, fast = base_of(), FastPaths()
    view, graphs = BaseView(base), RecordedGraphs(breaks)
    expected = written(base, rows_of(view, LIKE["uneven"]), None)
    with heard(caplog):
        for _ in range(2):
            is_same(written(base, rows_of(view, LIKE["uneven"]), capturing(graphs, fast)), expected, 1e-4)
    assert graphs.captured == breaks and not fast.allows("cuda_graphs") and fast.allows("lean_decoder")
    (line,) = caplog.messages
    assert line.startswith("model.fast: cuda_graphs is not used any more: it raised RuntimeError.")
    assert caplog.records[0].levelname == "WARNING"


class Wrong(RecordedGraphs):
    """Replays that spoil what is held."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def capture(self, function):
        replay = super().capture(function)

        def wrong():
            replay()
            self.spoil(function.__self__)

        return wrong


def spoil_all(loop):
    loop._decoder.logits.add_(torch.arange(300.0))
    loop._tokens.fill_(7)
    for keys, values in loop._own._layers:
        keys.index_fill_(2, loop._own.count - 1, 9.0)
        values.index_fill_(2, loop._own.count - 1, 9.0)
    loop._draw.drawn.index_fill_(0, loop._own.count, 1.0)


def test_a_graph_with_other_logits_is_given_up_and_its_step_is_made_good(base_of, caplog):
    base, fast = base_of(), FastPaths()
    view = BaseView(base)
    expected = written(base, rows_of(view, LIKE["uneven"]), None)
    with heard(caplog):
        mine = written(base, rows_of(view, LIKE["uneven"]), capturing(Wrong(spoil_all), fast))
    is_same(mine, expected, 1e-4)
    (line,) = caplog.messages
    assert "cuda_graphs is not used any more: its result differs by" in line


def test_in_half_precision_log_probabilities_are_compared(base_of):
    base, fast = base_of(dtype="bfloat16"), FastPaths()
    graphs = Wrong(lambda loop: loop._decoder.logits.add_(0.01))
    rows = rows_of(BaseView(base), LIKE["even"], temperature=0.0)
    written(base, rows, capturing(graphs, fast))
    assert fast.allows("cuda_graphs")


def test_each_kind_of_weights_is_compared_once(base_of):
    base, fast, compared = base_of(), FastPaths(), []
    view, once = BaseView(base), fast.verified_once

    def counts(name, mine, plain, **options):
        return once(name, lambda: compared.append(options["of"]) or mine(), plain, **options)

    fast.verified_once = counts
    for of in ("one", "one", "other"):
        written(base, rows_of(view, LIKE["even"]), Capturing(RecordedGraphs(), fast, of))
    assert compared == ["one", "other"]


def test_few_steps_are_not_captured(base_of, monkeypatch):
    monkeypatch.setattr(decoding_loop, "WORTH", 41)
    base, graphs = base_of(), RecordedGraphs()
    view = BaseView(base)
    expected = written(base, rows_of(view, LIKE["uneven"]), None)
    is_same(written(base, rows_of(view, LIKE["uneven"]), capturing(graphs)), expected, 1e-4)
    assert not graphs.captured


@pytest.mark.parametrize("room", [1, 8, 39, 40, 200, 1000])
def test_fixed_buffers_take_no_more_than_growing_ones_but_for_rounding(room):
    like = torch.zeros(2, 4, 7, 16)
    own = own_tokens.FixedTokens(3, like, 5, room)
    held = sum(buffer.numel() for both in own._layers for buffer in both)
    assert held <= 3 * 2 * 5 * 4 * (room + 7) * 16
    reaches = [own.reach]
    while own._reaches:
        own.widen()
        reaches.append(own.reach)
    assert reaches[-1] == own._places.numel() and reaches == sorted(set(reaches))
    assert all(reach % 8 == 0 and 2 * reach >= later for reach, later in pairwise(reaches))


def test_the_host_reads_nothing_in_a_step_that_is_captured(base_of):
    """`RecordedGraphs` refuses it, so that graphs would be given up."""
    graphs = RecordedGraphs()
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.capture(lambda: torch.ones(1).item())


@pytest.mark.parametrize(("kind", "yes"), [("default", True), ("llama3", True), ("dynamic", False)])
def test_positions_that_the_host_reads_are_not_captured(base_of, monkeypatch, kind, yes):
    lm = base_of().lm
    monkeypatch.setattr(lm.base_model.rotary_emb, "rope_type", kind)
    assert needs_no_host(lm) is yes


@pytest.mark.parametrize(("threshold", "yes"), [(0.0, True), (6.0, False)])
def test_layers_whose_input_the_host_reads_are_not_captured(base_of, monkeypatch, threshold, yes):
    lm = base_of("llama", "nf4").lm
    layer = base_layer(lm.base_model.layers[1].mlp.down_proj)
    monkeypatch.setattr(layer, "state", SimpleNamespace(threshold=threshold), raising=False)
    assert needs_no_host(lm) is yes


def test_a_cpu_has_no_graphs(base_of):
    with base_of().decoding.as_role(POLICY, merge=True) as model:
        assert not model.start([[5, 6, 7]] * 12, 30).loops
