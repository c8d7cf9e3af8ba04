"""Requests and paths for the tests of `vllm_server`."""

import torch

from rlhf_peft.plugin import Request, SamplingParams

LOAD, UNLOAD, COMPLETE, MODELS = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/completions",
    "/v1/models",
)


def asked(count=6, **params):
    params = SamplingParams(**{"max_new_tokens": 4, **params})
    return [Request(torch.tensor([5, 6, 7 + i]), i // 2, 100 + i, params, tag=f"t{i}") for i in range(count)]
