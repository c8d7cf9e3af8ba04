"""Dense layers for decoding."""

import pytest
import torch
from torch import nn

from rlhf_peft.engine import POLICY
from rlhf_peft.engine.merged import FEW, FewRows

from .support import load, stir, tokens


@pytest.mark.parametrize("shape", [(3, 8), (2, 1, 8), (2, 5, 8), (1, 8), (8,), (FEW + 1, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_are_those_of_a_linear_layer(shape, bias):
    torch.manual_seed(0)
    layer = FewRows(8, 6, bias=bias)
    x = torch.randn(shape)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert layer(x).shape == expected.shape
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_the_head_decodes_with_its_own_weights_and_comes_back(folder_of):
    base = load(folder_of("llama"), "nf4")
    stir(base, POLICY)
    head = base.lm.get_output_embeddings()
    with base.decoder(POLICY, merge=True) as lm:
        assert type(lm.get_output_embeddings()) is FewRows
        assert lm.get_output_embeddings().weight is head.weight
        ours = lm(input_ids=tokens(2, 5)).logits
    assert base.lm.get_output_embeddings() is head
    with base.decoder(POLICY, merge=False) as lm:
        assert torch.allclose(lm(input_ids=tokens(2, 5)).logits, ours, atol=1e-4)
