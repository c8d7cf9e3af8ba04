"""Dense layers for decoding."""

import torch

from rlhf_peft.engine import POLICY
from rlhf_peft.engine.fast.small_products import Dense

from ..support import load, stir, tokens


def test_the_head_decodes_with_its_own_weights_and_comes_back(folder_of):
    base = load(folder_of("llama"), "nf4")
    stir(base, POLICY)
    head = base.lm.get_output_embeddings()
    with base.decoding.decoding_model(POLICY, merge=True) as lm:
        assert type(lm.get_output_embeddings()) is Dense
        assert lm.get_output_embeddings().weight is head.weight
        ours = lm(input_ids=tokens(2, 5)).logits
    assert base.lm.get_output_embeddings() is head
    with base.decoding.decoding_model(POLICY, merge=False) as lm:
        assert torch.allclose(lm(input_ids=tokens(2, 5)).logits, ours, atol=1e-4)
