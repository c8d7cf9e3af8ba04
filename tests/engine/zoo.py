"""Tiny random models of architectures that are unlike Llama: other caches, experts, heads, positions, names."""

from .support import COMMON, GPT2, VOCAB

MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GPT = {**GPT2, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}

ZOO = {
    # a state, or a convolution, beside or instead of attention
    "mamba": ("mamba", {**COMMON, "state_size": 8, "time_step_rank": 4}),
    "falcon_mamba": ("falcon_mamba", {**COMMON, "state_size": 8, "time_step_rank": 4}),
    "mamba2": (
        "mamba2",
        {**COMMON, "state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "falcon_h1": (
        "falcon_h1",
        {**COMMON, **MAMBA2, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    "bamba": ("bamba", {**COMMON, **MAMBA2, "attn_layer_indices": [1]}),
    "granite4": (
        "granitemoehybrid",
        {
            **COMMON,
            **MAMBA2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "rope",
        },
    ),
    "granite4moe": (
        "granitemoehybrid",
        {
            **COMMON,
            **MAMBA2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 128,
        },
    ),
    "jamba": (
        "jamba",
        {
            **COMMON,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **COMMON,
            "mamba_d_state": 16,
            "mamba_headdim": 16,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "chunk_size": 16,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "adapter_rank": 8,
            "use_mem_rope": True,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **COMMON,
            "hybrid_override_pattern": "M*",
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "head_dim": 16,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **COMMON,
            "lru_width": 64,
            "attention_window_size": 8,
            "block_types": ["recurrent", "attention"],
            "logits_soft_cap": 3.0,
        },
    ),
    "lfm2": (
        "lfm2",
        {**COMMON, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_multiple_of": 16},
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {**COMMON, **EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "qwen3_next": (
        "qwen3_next",
        {**COMMON, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "qwen3_5": ("qwen3_5_text", {**COMMON, **DELTA}),
    "qwen3_5_moe": (
        "qwen3_5_moe_text",
        {**COMMON, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
    ),
    "minimax": (
        "minimax",
        {
            **COMMON,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 16,
        },
    ),
    # experts
    "qwen3_moe": ("qwen3_moe", {**COMMON, **EXPERTS, "head_dim": 16, "mlp_only_layers": [0]}),
    "olmoe": ("olmoe", {**COMMON, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "gpt_oss",
        {**COMMON, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **COMMON,
            **LATENT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            **COMMON,
            "head_dim": 16,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "granitemoe": ("granitemoe", {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {**COMMON, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    ),
    # windows, norms, positions, names
    "smollm3": ("smollm3", {**COMMON, "no_rope_layers": [1, 0]}),
    "cohere2": ("cohere2", {**COMMON, **WINDOW, "logit_scale": 0.25}),
    "exaone4": ("exaone4", {**COMMON, **WINDOW}),
    "olmo3": ("olmo3", {**COMMON, **WINDOW}),
    "gemma3_untied": ("gemma3_text", {**COMMON, **WINDOW, "head_dim": 16, "tie_word_embeddings": False}),
    "glm4": ("glm4", {**COMMON, "head_dim": 16}),
    "nemotron": ("nemotron", COMMON),
    "starcoder2": ("starcoder2", COMMON),
    "hunyuan": ("hunyuan_v1_dense", {**COMMON, "head_dim": 16}),
    "seed_oss": ("seed_oss", {**COMMON, "head_dim": 16}),
    "helium": ("helium", {**COMMON, "head_dim": 16}),
    "apertus": ("apertus", COMMON),
    "nanochat": ("nanochat", COMMON),
    "bitnet": ("bitnet", COMMON),
    "ernie4_5": ("ernie4_5", {**COMMON, "head_dim": 16}),
    "arcee": ("arcee", COMMON),
    "diffllama": ("diffllama", COMMON),
    "minicpm3": ("minicpm3", {**COMMON, **LATENT}),
    "olmo": ("olmo", COMMON),
    "persimmon": ("persimmon", COMMON),
    "gptj": ("gptj", {**GPT, "rotary_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neo": (
        "gpt_neo",
        {
            **GPT2,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    "codegen": ("codegen", {**GPT, "rotary_dim": 8}),
    "mpt": ("mpt", {**GPT2, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "xglm": (
        "xglm",
        {**COMMON, "d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4, "vocab_size": VOCAB},
    ),
    "biogpt": ("biogpt", COMMON),
    "rope_llama3": (
        "llama",
        {
            **COMMON,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        },
    ),
    "rope_yarn": (
        "qwen2",
        {
            **COMMON,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
}
