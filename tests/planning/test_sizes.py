import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_peft.errors import UsageError
from rlhf_peft.planning import sizes
from rlhf_peft.planning.gpus import GB, parse_gpu
from rlhf_peft.planning.shape import of_model

from ..quantizers import held_as


@pytest.fixture(scope="module")
def shape_of():
    """Two layers of hidden 64 and inner 128, four heads of 16 with two for keys, 100 tokens."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return lambda name, **options: of_model(
        model, torch.float32, "cpu", held_as(name, **options)["quantizer"]
    )


@pytest.fixture(scope="module")
def llama(shape_of):
    return shape_of("nf4")


LINEAR = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3
"""q, o; k, v; gate, up, down."""


def test_parameters_are_counted_once_where_they_are_tied(llama):
    assert llama.parameters == 2 * LINEAR + 100 * 64 + 5 * 64
    assert llama.plain == 100 * 64 + 5 * 64
    assert (llama.gated, llama.shares, llama.head_size) == (True, True, 16) and llama.lean


def test_weights_in_few_bits(shape_of):
    plain = 4 * (100 * 64 + 5 * 64)
    each = [64 * 64, 64 * 64, 64 * 32, 64 * 32, 64 * 128, 64 * 128, 64 * 128]
    single = 2 * sum(n // 2 + 4 * n // 64 + 64 for n in each)
    double = 2 * sum(n // 2 + n // 64 + 4 + 1024 + 64 for n in each)
    assert sizes.weight_bytes(shape_of("nf4", double_quantization=False)) == plain + single
    assert sizes.weight_bytes(shape_of("nf4")) == plain + double
    assert sizes.weight_bytes(shape_of("none")) == plain + 4 * 2 * LINEAR
    rows = 2 * (64 + 64 + 32 + 32 + 128 + 128 + 64)
    assert sizes.weight_bytes(shape_of("int8")) == plain + 2 * LINEAR + 4 * rows


def test_lora_goes_where_peft_puts_it(llama):
    whole = 2 * 8 * (2 * 128 + 2 * 96 + 3 * 192)
    assert sizes.lora_values(llama.targets("all-linear"), 8) == whole
    assert sizes.lora_values(llama.targets(["q_proj", "k_proj"]), 8) == 2 * 8 * (128 + 96)
    assert len(llama.targets(r".*\.0\.mlp\..*")) == 3


def test_optimizer_state(llama):
    layers = llama.targets(["q_proj"])
    assert sizes.optimizer_bytes(layers, 8, 65, "adamw") == 8 * (2 * 2 * 8 * 64 + 65)
    assert sizes.optimizer_bytes(layers, 8, 0, "adamw_8bit") == 8 * 2 * 2 * 8 * 64
    assert sizes.optimizer_bytes(layers, 64, 0, "adamw_8bit") == 2 * 2 * (2 * 4096 + 8 * 16)


def test_cache_and_dense_weights(llama):
    assert sizes.cache_bytes(llama, 30) == 2 * 3 * 10 * 2 * 2 * 16 * 4
    assert sizes.dense_bytes(llama) == 4 * 2 * LINEAR


def test_what_a_layer_keeps(llama):
    """Residuals and norms, queries and output, four of the MLP; keys and values repeated for four heads."""
    token = 2 * 64 * 8 + 2 * 64 * 4 + 4 * 4 + 128 * 4 * 4
    assert sizes.layer_saved(llama, 10, 20) == 10 * token + 2 * 20 * 64 * 4
    one_step = 10 * (token - 128 * 4 * 2) + 2 * 20 * 64 * 4
    assert sizes.layer_saved(llama, 10, 20, fused=True) == one_step
    inputs = 2 * 10 * 64 * 4
    one = sizes.layer_saved(llama, 10, 20)
    assert sizes.saved_bytes(llama, 10, 20, checkpointing=True) == one + inputs
    assert sizes.saved_bytes(llama, 10, 20, checkpointing=False) == 2 * one


def test_logits_depend_on_the_chunk_and_not_on_all_tokens(llama):
    assert sizes.logit_chunk_bytes(llama, 10**6, entropy=False) == 256 * 100 * 4
    half = dataclasses.replace(llama, itemsize=2)
    assert sizes.logit_chunk_bytes(half, 10, entropy=True) == 10 * 100 * (8 + 2)


def test_a_trainers_logits_are_a_tile(llama):
    wide = dataclasses.replace(llama, vocabulary=151_646, itemsize=2)
    card = dataclasses.replace(wide, device="cuda")
    assert sizes.tile_bytes(llama, 10) == 10 * 100 * 33
    assert sizes.tile_bytes(wide, 10**6) == 4096 * 32_768 * 31
    assert sizes.tile_bytes(card, 10**6) == 4096 * 32_768 * 2


@pytest.mark.parametrize("text", ["12GB", "12 gib", "RTX 4070", "NVIDIA GeForce RTX4070", "rtx-3060"])
def test_a_gpu_by_size_or_name(text):
    assert parse_gpu(text) == 12 * GB


@pytest.mark.parametrize("text", ["RTX 4071", "0GB", ""])
def test_an_unknown_gpu(text):
    with pytest.raises(UsageError, match="neither a size nor a known card"):
        parse_gpu(text)
