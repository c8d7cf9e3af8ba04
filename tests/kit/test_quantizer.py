"""What a quantizer does unless it says otherwise."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_peft.kit.quantizer import UNQUANTIZED, Quantizer, QuantizerBase, linear_sizes

CPU = torch.device("cpu")


def test_sizes_of_plain_and_of_transposed_layers():
    assert linear_sizes(nn.Linear(3, 5)) == (3, 5)
    assert linear_sizes(Conv1D(5, 3)) == (3, 5)


def test_the_base_of_all_quantizes_nothing():
    assert isinstance(UNQUANTIZED, Quantizer) and UNQUANTIZED.bits is None
    assert UNQUANTIZED.load_arguments(torch.float32, None) == {}
    assert UNQUANTIZED.load_code([]) is None
    assert not UNQUANTIZED.reads({"quant_method": "bitsandbytes"})
    assert not UNQUANTIZED.is_quantized(nn.Linear(3, 5))


def test_only_plain_linear_layers_are_taken():
    class Own(nn.Linear):
        pass

    assert QuantizerBase().refuses(nn.Linear(3, 5), CPU) is None
    assert QuantizerBase().refuses(Own(3, 5), CPU) == "Own is no plain linear layer"


def test_what_it_cannot_know_is_an_error():
    with pytest.raises(NotImplementedError, match="dequantized"):
        QuantizerBase().dense_weight(nn.Linear(3, 5), torch.float32)
    with pytest.raises(NotImplementedError, match="large"):
        QuantizerBase().bytes(3, 5)
