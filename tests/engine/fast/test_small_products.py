"""Dense layers for decoding."""

import pytest
import torch
from torch import nn

from rlhf_peft.engine.fast.small_products import FEW, Dense, quick_size


@pytest.mark.parametrize("shape", [(3, 8), (2, 1, 8), (2, 5, 8), (1, 8), (8,), (FEW + 1, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_are_those_of_a_linear_layer(shape, bias):
    torch.manual_seed(0)
    layer = Dense(8, 6, bias=bias)
    x = torch.randn(shape)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert layer(x).shape == expected.shape
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_rows_are_filled_up_on_a_cpu_alone():
    sizes = [quick_size(rows, torch.device("cpu")) for rows in (1, 2, 3, 5, 6, 9, 16, 17, 24, 25)]
    assert sizes == [2, 2, 4, 5, 8, 16, 16, 24, 24, 32]
    assert quick_size(5, torch.device("cuda")) == 5
