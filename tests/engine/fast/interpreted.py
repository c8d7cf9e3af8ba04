"""The kernels for log-probabilities by Triton's interpreter, on the CPU, against torch's operators."""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from rlhf_peft.engine.fast import fused_logprobs
from rlhf_peft.maths import token_logprobs

fused_logprobs.BLOCK = 64


def results(hidden, weight, targets, kernels, **options):
    leaf = hidden.clone().requires_grad_()
    logps, entropies = token_logprobs(leaf, weight, targets, kernels=kernels, chunk=3, **options)
    loss = (logps * torch.linspace(-1, 1, len(logps))).sum()
    if entropies is not None:
        loss = loss + (entropies * torch.linspace(2, 1, len(logps))).sum()
    loss.backward()
    found = {"logps": logps, "entropies": entropies, "gradient": leaf.grad.float()}
    return {name: value.detach() for name, value in found.items() if value is not None}


def main():
    kernels = fused_logprobs.TritonKernels()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for words in (50, 64, 301):
            generator = torch.Generator().manual_seed(words)
            hidden = torch.randn(7, 16, generator=generator).to(dtype)
            weight = (2 * torch.randn(words, 16, generator=generator)).to(dtype)
            targets = torch.randint(words, (7,), generator=generator)
            targets[:2] = torch.tensor([0, words - 1])
            bias = torch.randn(words, generator=generator).to(dtype)
            for options in (
                {},
                {"entropy": True, "temperature": 0.7},
                {"entropy": True, "softcap": 5.0, "scale": 0.5, "temperature": 1.3, "bias": bias},
            ):
                plain = results(hidden, weight, targets, None, **options)
                fused = results(hidden, weight, targets, kernels, **options)
                assert plain.keys() == fused.keys()
                for name, value in plain.items():
                    bound = 1e-5 if name != "gradient" or dtype == torch.float32 else 8e-3
                    error = float((fused[name] - value).abs().max() / value.abs().max())
                    assert error < bound, (dtype, words, options, name, error)
            bias[: words // 2] = -torch.inf  # words that are forbidden
            targets.clamp_(min=words // 2)
            plain, fused = (results(hidden, weight, targets, x, bias=bias) for x in (None, kernels))
            assert torch.allclose(plain["logps"], fused["logps"], atol=1e-5)
    print("the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
