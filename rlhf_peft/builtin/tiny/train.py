"""Trains the model of `builtin:tiny` from scratch: tokenizer, chat template, and a million weights.

    python -m rlhf_peft.builtin.tiny.train --out rlhf_peft/assets/tiny

Everything follows from the seed: one thread and one version of torch always give the same files. The layer shapes are
multiples of 64, so that every linear layer consists of whole blocks of NF4 and of LoRA on any device. Left out on
purpose: checkpoints, logging and devices, because it takes a few minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .text import Row, pretraining_texts

PAD, BOS, EOS, UNK = "<|pad|>", "<|begin|>", "<|end|>", "<|unk|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
NOTE_WEIGHT = 2.0
"""Weight of a note's tokens in the loss; other tokens have weight 1. Notes are short, so they count more."""

Encoded = tuple[list[int], int]
"""Token ids, and the position where the note begins."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Every turn ends with the end token; the prompt is a prefix of the whole; `generation` marks what trains."""


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts; decoding restores any text exactly."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, UNK, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the Llama architecture for this tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[Encoded]:
    """Token ids of prose and of chats (by the chat template), and the position where each note begins."""
    texts = [
        BOS + row["text"] + EOS
        if "text" in row
        else tokenizer.apply_chat_template(row["messages"], tokenize=False)
        for row in rows
    ]
    notes = [row["note"] + EOS if "note" in row else "" for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    note_ids = tokenizer(notes, add_special_tokens=False)["input_ids"]
    return [(text + note, len(text)) for text, note in zip(ids, note_ids, strict=True)]


def batches(rows: list[Encoded], tokens: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded input ids and loss weights, both [B, T], of rows of similar length, in a random order."""
    rng = Random(seed)
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index][0]), rng.random()))
    groups: list[list[int]] = [[]]
    for index in order:
        if (len(groups[-1]) + 1) * len(rows[index][0]) > tokens:
            groups.append([])
        groups[-1].append(index)
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(rows[index][0]) for index in group)
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        weights = torch.zeros(len(group), longest)
        for line, (row, note) in enumerate(rows[index] for index in group):
            ids[line, : len(row)] = torch.tensor(row)
            weights[line, : len(row)] = 1.0
            weights[line, note : len(row)] = NOTE_WEIGHT
        yield ids, weights


def mean_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean cross-entropy of each token given those before it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def fit(model: LlamaForCausalLM, rows: list[Encoded], tokens: int, peak: float, seed: int) -> None:
    """Train the model once over the rows, with a short warm-up and a cosine decay of the learning rate."""
    steps = list(batches(rows, tokens, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step, (ids, weights) in enumerate(steps):
        warm = min(1.0, (step + 1) / 100)
        rate = peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / len(steps))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = mean_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            mean = sum(losses[-200:]) / 200
            print(
                f"step {step + 1}/{len(steps)}  loss {mean:.3f}  {time.monotonic() - began:.0f} s", flush=True
            )


def main() -> None:
    """Train the model and write it, with its tokenizer, to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=80_000, help="number of texts, each seen once")
    parser.add_argument("--tokens", type=int, default=1280, help="tokens in a batch, padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--vocabulary", type=int, default=1280, help="size of the vocabulary")
    options = parser.parse_args()

    # 1. one thread, one seed
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)

    # 2. text and tokenizer
    rows = pretraining_texts(options.texts, options.seed)
    contents = [message["content"] for row in rows for message in row.get("messages", ())]
    contents += [row[key] for row in rows for key in ("text", "note") if key in row]
    tokenizer = make_tokenizer(contents, options.vocabulary)

    # 3. model
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} weights, {len(tokenizer)} tokens, {len(rows):,} texts")
    fit(model, encode(tokenizer, rows), options.tokens, options.rate, options.seed)

    # 4. save, and nothing else
    options.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
