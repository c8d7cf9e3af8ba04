"""Requests, and models of other architectures behind a view, for the tests of all samplers."""

from contextlib import contextmanager

import torch

from rlhf_peft.engine.decoding import DecodingModel
from rlhf_peft.engine.fast import FastPaths
from rlhf_peft.plugin import Request, SamplingParams

PROMPTS = [
    "Tell me about a fox.",
    "Who is it?",
    "Please tell me something nice about the old lighthouse.",
    "Hello",
]
MIXED = [{}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.05}, {"top_p": 0.9, "top_k": 20, "min_p": 0.01}]
"""Truncations of several kinds, none among them."""


def requests(tokenizer, count=8, temperature=1.0, new=24, stop=(), truncations=({},)):
    out = []
    for i in range(count):
        prompt = PROMPTS[i % len(PROMPTS)]
        params = SamplingParams(new, temperature, tuple(stop), **truncations[i % len(truncations)])
        ids = torch.tensor(tokenizer(prompt).input_ids)
        out.append(Request(ids, i % len(PROMPTS), 100 + i, params, columns={"prompt": prompt}))
    return out


def completions(rollout):
    return [rollout.completion_ids(i) for i in range(len(rollout))]


class ModelView:
    """A `PolicyView` of a bare model, whose tokens read `<3><4>`."""

    device = torch.device("cpu")
    pad_id = 0
    eos_ids = frozenset({2})
    vocab_size = 100

    def __init__(self, model, max_length=64, fast=True):
        self.model, self.max_length = model, max_length
        self.fast = FastPaths(fast)
        self.ready = DecodingModel(model, self.pad_id, max_length, self.fast)

    def decode(self, ids):
        return "".join(f"<{i}>" for i in ids)

    @contextmanager
    def decoding(self):
        with torch.no_grad():
            yield self.ready

    def save_adapter(self, folder):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
