"""Tiny random models of many architectures, saved as real ones are, and what tests do with them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf_peft.engine import BaseSpec, LoraSpec, SharedBase
from rlhf_peft.engine import adapters as engine_adapters
from rlhf_peft.engine.base_spec import quiet

from ..quantizers import held_as

VOCAB = 300
PAD, EOS = 0, 2
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.1,
}
GPT2 = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": EOS, "initializer_range": 0.1}
ARCHITECTURES = {
    "llama": ("llama", {**COMMON, "intermediate_size": 172}),
    "llama_bias": (
        "llama",
        {**COMMON, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 32}),
    "gemma": ("gemma", {**COMMON, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("gemma2", {**COMMON, "head_dim": 16, "sliding_window": 4, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**COMMON, "head_dim": 16, "sliding_window": 4}),
    "mistral": ("mistral", {**COMMON, "head_dim": 16, "sliding_window": 4}),
    "phi": ("phi", COMMON),
    "phi3": ("phi3", COMMON),
    "gpt2": ("gpt2", {**GPT2, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("gpt_neox", COMMON),
    "cohere": ("cohere", {**COMMON, "logit_scale": 0.25}),
    "granite": ("granite", {**COMMON, "logits_scaling": 4.0}),
    "olmo2": ("olmo2", COMMON),
    "stablelm": ("stablelm", {**COMMON, "use_qkv_bias": True}),
    "opt": ("opt", {**COMMON, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("bloom", {**GPT2, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **COMMON,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 128,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "mixtral": ("mixtral", {**COMMON, "num_local_experts": 4}),
    "falcon": ("falcon", {**COMMON, "bias": True, "alibi": True}),
    "wide": ("llama", {**COMMON, "vocab_size": 20000}),
}


def tokenizer(extra: int = 0, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, one for each row of the embedding and `extra` beyond."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCAB + extra))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = special or {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def config(name: str):
    from .zoo import ZOO

    kind, options = ARCHITECTURES.get(name) or ZOO[name]
    return AutoConfig.for_model(kind, **options)


def save_model(folder: Path, name: str, seed: int = 0, with_tokenizer: bool = True) -> Path:
    """Random weights, biases included, as `save_pretrained` writes them."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.1)
    with quiet():
        model.save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path, quantization: str = "nf4", lora: LoraSpec | None = None, **options) -> SharedBase:
    source = {k: options.pop(k) for k in ("device", "compute_dtype", "attn_implementation") if k in options}
    return SharedBase(
        BaseSpec(path=str(folder), **held_as(quantization), **source),
        lora or LoraSpec(r=4, alpha=8),
        **options,
    )


def stir(base: SharedBase, role: str, seed: int = 1) -> None:
    """Give a role's adapter and head a random effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in engine_adapters.parameters(base.model, base.roles.adapter_of(role)):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        if role in base.roles.heads:
            base.roles.heads[role].bias.fill_(0.3)


def tokens(rows: int, length: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def everything(base: SharedBase) -> dict:
    """All the state that a role switch must give back."""
    layers = base.roles.active.layers
    return {
        "active": [tuple(layer.active_adapters) for layer in layers],
        "disabled": [layer.disable_adapters for layer in layers],
        "named": (base.model.active_adapter, tuple(base.model.base_model.active_adapters)),
        "modes": [module.training for module in base.model.modules()],
        "modules": [id(module) for module in base.model.modules()],
        "parameters": [id(p) for p in base.model.parameters()],
        "grads": [p.requires_grad for p in [*base.model.parameters(), *base.roles.heads.parameters()]],
        "dropout": [m.p for m in base.model.modules() if isinstance(m, torch.nn.Dropout)],
        "pinned": base.roles.active._pinned,
    }
