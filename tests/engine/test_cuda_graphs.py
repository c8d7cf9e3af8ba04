"""On a card: captured steps write what the lean step writes, and CUDA refuses none of them."""

import pytest
import torch

from rlhf_peft.engine import POLICY, LoraSpec, decoding_loop
from rlhf_peft.engine.fast import NAMES
from rlhf_peft.engine.fast.cuda_graphs import CudaGraphs
from rlhf_peft.engine.fast.lean import own_tokens
from rlhf_peft.kit.sampling import write_rows
from rlhf_peft.session.policy_view import BaseView

from .support import load, stir
from .test_decoding_loop import LIKE, is_same, rows_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LEAN = sorted(set(NAMES) - {"cuda_graphs"})


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(own_tokens, "SPARED", 1)
    monkeypatch.setattr(decoding_loop, "WORTH", 3)


def written(folder, quantization, dtype, fast, which, mixed):
    """Rows that were written, and how often a graph was captured."""
    base = load(folder, quantization, LoraSpec(r=4, alpha=6.0), device="cuda", compute_dtype=dtype, fast=fast)
    stir(base, POLICY)
    view, captured, capture = BaseView(base), [], CudaGraphs.capture
    rows = rows_of(view, which, mixed=mixed)
    with pytest.MonkeyPatch.context() as patched, base.decoding.as_role(POLICY, merge=False) as model:
        patched.setattr(CudaGraphs, "capture", lambda self, what: captured.append(1) or capture(self, what))
        decoder = model.start(
            [row.request.prompt_ids.tolist() for row in rows], max(row.room for row in rows)
        )
        write_rows(decoder, view, rows, read_every=4)
        assert model._fast.allows("cuda_graphs") is (fast is True)
    return rows, len(captured)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("which", ["even", "uneven", "alone"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_tokens_are_the_same(folder_of, name, quantization, which, mixed):
    given = folder_of(name), quantization, "float32"
    mine, captured = written(*given, True, LIKE[which], mixed)
    others, none = written(*given, LEAN, LIKE[which], mixed)
    assert captured > 1 and none == 0
    is_same(mine, others, 1e-3)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_half_precision_is_captured_too(folder_of, quantization):
    rows, captured = written(folder_of("qwen3"), quantization, "bfloat16", True, LIKE["uneven"], True)
    assert captured > 1 and all(row.finish for row in rows)


def test_a_capture_that_fails_leaves_the_card_in_order(folder_of):
    graphs, x = CudaGraphs(torch.device("cuda", torch.cuda.current_device())), torch.ones(4, device="cuda")
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        graphs.capture(lambda: x.sum().item())
    assert torch.cuda.current_stream() == stream and (x + 1).tolist() == [2.0] * 4
    torch.cuda.empty_cache()
    _, captured = written(folder_of("llama"), "none", "float32", True, LIKE["even"], False)
    assert captured > 1
