"""Random models of a known shape, saved as a hub folder has them, with a tokenizer of one word a token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 1024,
}
"""About 34M parameters, 25M of them in 4-bit layers and 8M in embeddings and head (tied: 4M)."""


def make_model(folder: Path, *, seed: int = 0, **changes: int) -> Path:
    """Save a random Llama of this shape; an end is drawn as rarely as any other token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {**SMALL, **changes}
    torch.manual_seed(seed)
    config = LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, shape["vocab_size"])
    return folder


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Save a tokenizer with a word for each token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
    words |= {f"w{i}": i for i in range(4, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def prompts(count: int, length: int, *, vocabulary: int = 8192, seed: int = 0) -> list[str]:
    """Prompts of `length` words each."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(4, vocabulary)}" for _ in range(length)) for _ in range(count)]


def reward(completion_ids: list[list[int]]) -> list[float]:
    """Share of even tokens: cheap, and never equal for all."""
    return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]


def limits(case: dict[str, Any]) -> list[int]:
    """Most tokens of each row: with `early`, one row in four goes to the limit and the others end at 4 to 24."""
    rows = case["prompts"] * case["generations"]
    if not case.get("early"):
        return [case["new"]] * rows
    draw = random.Random(0)
    return [case["new"] if row % 4 == 0 else draw.randint(4, 24) for row in range(rows)]


def rows_of(tokenizer: Any, case: dict[str, Any]) -> list[list[int]]:
    """Token ids of each row: every prompt as often as it has completions."""
    each = [tokenizer(text).input_ids for text in prompts(case["prompts"], case["prompt"])]
    return [ids for ids in each for _ in range(case["generations"])]
