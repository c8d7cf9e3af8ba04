"""Dense layers for decoding."""

import torch

from rlhf_peft.engine import POLICY
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
