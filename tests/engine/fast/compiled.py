"""The kernels for log-probabilities are compiled for cards that are not there."""

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlhf_peft.engine.fast import fused_logprobs

CAPABILITIES = (75, 80, 89, 90)
POINTERS = {"targets_ptr": "*i64"}
NUMBERS = {"stride": "i32", "out_stride": "i32", "words": "i32", "inner": "fp32", "outer": "fp32"}


def compiled(kernel, capability, out, constants):
    types = {}
    for name in kernel.arg_names:
        pointer = f"*{out}" if name == "out_ptr" else POINTERS.get(name, "*fp32")
        types[name] = "constexpr" if name in constants else NUMBERS.get(name, pointer)
    source = ASTSource(kernel, types, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": 8}).asm["cubin"]


def main():
    for capability, cap, entropy in itertools.product(CAPABILITIES, (False, True), (False, True)):
        constants = {"HAS_CAP": cap, "HAS_ENTROPY": entropy, "BLOCK": fused_logprobs.BLOCK}
        assert compiled(fused_logprobs._read_rows, capability, "fp32", constants)
        for out in ("fp16", "fp32") if capability < 80 else ("bf16", "fp16", "fp32"):
            assert compiled(fused_logprobs._write_gradients, capability, out, constants)
    return 0


if __name__ == "__main__":
    sys.exit(main())
