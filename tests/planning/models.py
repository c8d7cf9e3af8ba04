"""Configurations of models that are planned, as their config.json on the hub have them; there are no weights."""

import json
import shutil
from pathlib import Path

import rlhf_peft

TINY = Path(rlhf_peft.__file__).parent / "assets" / "tiny"
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
}
SIZES = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
"""Shapes of Qwen3; all but 8B tie the output layer to the embedding."""
LLAMA3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
CONFIGS = {
    **{name: {**QWEN3, **size, "tie_word_embeddings": name != "8B"} for name, size in SIZES.items()},
    "Llama 3 8B": LLAMA3_8B,
}


def write_model(folder, name):
    """The folder of a model, with the tokenizer of `builtin:tiny`."""
    model = Path(folder) / name.replace(" ", "-")
    if not model.exists():
        model.mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(TINY / file, model / file)
        (model / "config.json").write_text(json.dumps(CONFIGS[name]))
    return model
