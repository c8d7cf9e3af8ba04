"""Recipes for dry runs: every family of algorithms and stages, on a model of one small layer."""

import json
import shutil
from pathlib import Path

TINY = Path(__file__).parents[2] / "rlhf_peft" / "assets" / "tiny"
TEXT = "the old fox sat near a lighthouse and looked at the sea while rain fell on the roof"
WORDS = [word for word in TEXT.split(" ") if word]
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTH = [{"name": "length", "target": 8, "width": 4}]


def text(words, shift):
    return " ".join(WORDS[(shift + i) % len(WORDS)] for i in range(words))


def write_files(folder):
    """The model's folder, which has no weights, and rows of different lengths."""
    model = folder / "model"
    model.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, model / name)
    (model / "config.json").write_text(json.dumps(CONFIG))
    rows = {
        "prompts": lambda i: {"prompt": text(4 + i % 5, i)},
        "pairs": lambda i: {
            "prompt": text(4 + i % 5, i),
            "chosen": text(6 + i % 3, i),
            "rejected": text(4, i + 1),
        },
        "answers": lambda i: {"prompt": text(4 + i % 5, i), "completion": text(6 + i % 3, i)},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(12)))


def recipe(folder, stage, model=(), **more):
    return {
        "version": 1,
        "name": "dry",
        "seed": 1,
        "device": "cuda",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "max_length": 128, **dict(model)},
        "lora": {"r": 4},
        "stages": [stage],
        **more,
    }


def rl(algorithm, model=(), device="cuda", sampler=(), lora=(), **stage):
    def made(folder):
        whole = {
            "stage": "rl",
            "dataset": {"path": str(folder / "prompts.jsonl")},
            "algorithm": algorithm,
            "sampler": {"name": "cached", "max_new_tokens": 20, **dict(sampler)},
            "rewards": LENGTH,
            "prompts_per_step": 2,
            "max_steps": 1,
            **stage,
        }
        if "eval" in whole:
            whole["eval"] = {"dataset": {"path": str(folder / "prompts.jsonl")}, **whole["eval"]}
        return recipe(folder, whole, model, device=device, lora={"r": 4, **dict(lora)})

    return made


def other(file, model=(), **stage):
    def made(folder):
        whole = {"dataset": {"path": str(folder / f"{file}.jsonl")}, "batch_size": 4, "max_steps": 1, **stage}
        return recipe(folder, whole, model)

    return made


GRPO = {"name": "grpo", "num_generations": 3}
PPO = {"name": "ppo", "num_epochs": 1}
CASES = {
    "ppo, own value, 8-bit": rl(
        {"name": "ppo", "value": "own", "num_minibatches": 2, "num_epochs": 1}, optimizer="adamw_8bit"
    ),
    "ppo, value on the policy, not merged": rl(
        {"name": "ppo", "value": "policy", "num_epochs": 1}, {"merge_rollouts": False}
    ),
    "grpo with kl, evaluation, checkpoints, resume": rl(
        {**GRPO, "beta": 0.04}, max_steps=2, eval={"every": 1, "size": 2}, checkpoint={"every": 1, "keep": 3}
    ),
    "grpo, recomputed, lora dropout": rl(GRPO, {"gradient_checkpointing": True}, lora={"dropout": 0.1}),
    "grpo, unquantized, another card": rl(GRPO, {"quantization": "none"}, device="cuda:1"),
    "cispo, float16": rl({**GRPO, "name": "cispo"}, {"compute_dtype": "float16"}),
    "gspo, float32": rl({**GRPO, "name": "gspo"}, {"compute_dtype": "float32"}),
    "rloo by generate": rl({**GRPO, "name": "rloo"}, device="cuda:0", sampler={"name": "hf"}),
    "online dpo": rl({"name": "online_dpo"}),
    "rejection sampling, truncated": rl(
        {"name": "rejection_sampling"}, sampler={"top_p": 0.9, "top_k": 20, "min_p": 0.01, "temperature": 0.7}
    ),
    "reward model": other(
        "pairs", stage="reward_model", optimizer="adamw_8bit", ensemble=2, normalize="standardize"
    ),
    "sft": other(
        "answers", {"gradient_checkpointing": True}, stage="sft", optimizer="adamw_8bit", eval={"every": 1}
    ),
    "dpo": other("pairs", stage="preference", method="dpo"),
    "kto": other("pairs", stage="preference", method="kto"),
}
