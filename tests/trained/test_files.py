"""Written configurations say the same under the names of transformers 4 and 5."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_peft.engine import BaseSpec
from rlhf_peft.trained.files import save_model, tokenizer_with_older_names, with_older_names

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 7e5, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 7e5,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 32,
}
PARTIAL = {"rope_type": "default", "rope_theta": 7e5, "partial_rotary_factor": 0.5}
GEMMA = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
}


@pytest.mark.parametrize(
    ("kind", "rope", "expected"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 7e5}, {"rope_theta": 7e5}),
        (
            "qwen2",
            YARN,
            {"rope_theta": 7e5, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}},
        ),
        ("stablelm", PARTIAL, {"rope_theta": 7e5, "partial_rotary_factor": 0.5}),
        ("gpt_neox", PARTIAL, {"rotary_emb_base": 7e5, "rotary_pct": 0.5}),
        (
            "phi3",
            LONG,
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        ),
        (
            "gemma3_text",
            GEMMA,
            {
                "rope_theta": 7e5,
                "rope_local_base_freq": 5e3,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)
def test_rotary_positions_have_both_names_and_5_reads_the_same(tmp_path, kind, rope, expected):
    more = {"original_max_position_embeddings": 32} if kind == "phi3" else {"head_dim": 16}
    config = AutoConfig.for_model(kind, **SIZES, **more, rope_parameters=rope)
    asked = config.to_dict()["rope_parameters"]
    save_model(AutoModelForCausalLM.from_config(config), tmp_path)
    config = with_older_names(AutoConfig.from_pretrained(tmp_path).to_dict())
    assert {key: config[key] for key in expected} == expected
    back = AutoConfig.from_pretrained(tmp_path).to_dict()["rope_parameters"]
    assert {key: back[key] for key in asked} == asked


def test_configurations_inside_are_treated_alike():
    inner = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}
    config = with_older_names({"model_type": "llava", "text_config": inner, "dtype": "bfloat16"})
    assert config["text_config"]["rope_theta"] == 7e5 and config["torch_dtype"] == "bfloat16"
    assert "rope_theta" not in config


def test_a_tokenizer_has_a_class_and_keys_that_transformers_4_knows(tmp_path):
    given = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"], "eos_token": "<|end|>"}
    assert tokenizer_with_older_names(given) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "eos_token": "<|end|>",
    }
    assert tokenizer_with_older_names({"tokenizer_class": "Qwen2Tokenizer"}) == {
        "tokenizer_class": "Qwen2Tokenizer"
    }
    tokenizer = AutoTokenizer.from_pretrained(BaseSpec("builtin:tiny").location)
    assert type(tokenizer).__name__ == "TokenizersBackend"
