"""Dense layers for decoding."""

import pytest
import torch

from rlhf_peft.engine import POLICY
from rlhf_peft.engine.compat.lora import matrices
from rlhf_peft.engine.fast.dense_weights import dense_weight
from rlhf_peft.engine.fast.small_products import Dense

from ..support import load, stir, tokens


def test_the_head_decodes_with_its_own_weights_and_comes_back(folder_of):
    base = load(folder_of("llama"), "nf4")
    stir(base, POLICY)
    head = base.lm.get_output_embeddings()
    with base.decoding.as_role(POLICY, merge=True) as model:
        assert type(model.lm.get_output_embeddings()) is Dense
        assert model.lm.get_output_embeddings().weight is head.weight
        ours = model.lm(input_ids=tokens(2, 5)).logits
    assert base.lm.get_output_embeddings() is head
    with base.decoding.as_role(POLICY, merge=False) as model:
        assert torch.allclose(model.lm(input_ids=tokens(2, 5)).logits, ours, atol=1e-4)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_merge_in_bfloat16_keeps_a_young_adapter(folder_of, quantization):
    """bfloat16(W + d) is W where W lies on the grid of bfloat16 and |d| is under half its spacing.

    So weights in 4 bits are dequantized in float32. Unquantized ones are stored on that grid: nothing is added to them,
    and the adapter is computed beside them.
    """
    base = load(folder_of("llama"), quantization, compute_dtype="bfloat16")
    layer = base.lm.get_submodule("model.layers.0.mlp.up_proj")
    lora = matrices(layer, POLICY)
    plain = dense_weight(layer.get_base_layer(), base.loaded.quantizer, torch.float32).double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        lora.up.copy_(torch.randn(lora.up.shape, generator=generator))
        update = lora.scale * lora.up.double() @ lora.down.double()
        small = 5e-4 * plain.std() / update.std()
        lora.up.mul_(small)
        update *= small
    with base.decoding.as_role(POLICY, merge=True) as model:
        stand_in = model.lm.get_submodule("model.layers.0.mlp.up_proj")
        merged = stand_in.weight.double()
        if stand_in.low_rank is not None:
            up, down = stand_in.low_rank
            merged = merged + up.double() @ down.double()
    kept = float(((merged - plain) * update).sum() / update.square().sum())
    assert 0.8 < kept < 1.2
