"""The ceilings of a card, decoding, and single forwards and updates."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rlhf_peft.engine import POLICY
from rlhf_peft.kit.sampling.local import write_rows
from rlhf_peft.kit.sampling.rows import start_rows
from rlhf_peft.session.policy_view import BaseView
from rlhf_peft.types import Request, SamplingParams

from ..measure import Stopwatch, median
from .cases import Sizes
from .memory import Memory

TURNS = 4
"""How often a thing is timed; the first time, in which fast paths are compared, does not count."""


def timed(work: Callable[[], Any], turns: int = TURNS) -> float:
    """The median of the seconds that something takes."""
    seconds = []
    for _ in range(turns):
        watch = Stopwatch()
        work()
        seconds.append(watch.seconds)
    return median(seconds[1:])


# --- ceilings -----------------------------------------------------------------------------------------------


def copy_bandwidth(device: torch.device, count: int) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    data, target = (torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2))
    each = 10

    def copy() -> None:
        for _ in range(each):
            target.copy_(data)

    return 2 * each * count / timed(copy)


def ceilings(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """What no program exceeds: a copy, a large product in bfloat16; and the seconds of a launch."""
    left, right = (
        torch.randn(sizes.square, sizes.square, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    product = timed(lambda: left @ right)
    small = torch.zeros(16, device=device)

    def launch() -> None:
        for _ in range(1000):
            small.add_(1.0)

    return {
        "copy bytes/s": copy_bandwidth(device, sizes.copied),
        "product flop/s": 2 * sizes.square**3 / product,
        "seconds a launch": timed(launch) / 1000,
    }


# --- decoding -----------------------------------------------------------------------------------------------


def decoding(base: Any, sizes: Sizes, options: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second after the prompts were read, and what share of a copy's bandwidth that is."""
    rows, new = options["rows"] if options["rows"] == 1 else sizes.rows, sizes.new
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, base.vocab_size, (rows, sizes.prompt), generator=generator)
    view = BaseView(base)
    view.eos_ids = frozenset()
    asked = [Request(ids, i, i, SamplingParams(new)) for i, ids in enumerate(prompts)]
    reading, writing = [], []
    with base.decoding.as_role(POLICY) as model:
        for _ in range(TURNS):
            gc.collect()
            lines = start_rows(asked, view.max_length, "benchmark")
            watch = Stopwatch()
            decoder = model.start(prompts.tolist(), new)
            reading.append(watch.seconds)
            watch = Stopwatch()
            write_rows(decoder, view, lines)
            writing.append(watch.seconds)
            if len(writing) == 1:  # Without the memory of the comparisons.
                memory = Memory(base.device)
        seconds = median(writing[1:])
        step = seconds / new
        read = weight_bytes(model.lm) + rows * cache_bytes(base, sizes.prompt + new // 2)
        launches = launches_of(model, prompts, base.device)
    copied = copy_bandwidth(base.device, sizes.copied)
    return {
        "tokens/s": rows / step,
        "seconds a step": step,
        "seconds of the prompts": median(reading[1:]),
        "read bytes/s": read / step,
        "share of the copy bandwidth": read / step / copied,
        "launches a step": launches,
        **memory.figures(),
    }


def weight_bytes(lm: nn.Module) -> int:
    """Bytes of weights that a decoded token reads: all of them, but of an embedding that is no head."""
    tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    total = sum(parameter.nbytes for parameter in lm.parameters())
    for parameter in lm.parameters():
        state = getattr(parameter, "quant_state", None)
        total += 0 if state is None else state.absmax.nbytes
    return total if tied else total - lm.get_input_embeddings().weight.nbytes


def cache_bytes(base: Any, tokens: int) -> int:
    """Bytes of keys and values of one row."""
    config = base.lm.config
    heads = config.num_key_value_heads * config.head_dim
    return int(2 * config.num_hidden_layers * heads * tokens * base.dtype.itemsize)


def launches_of(model: Any, prompts: torch.Tensor, device: torch.device, steps: int = 4) -> float:
    """Kernels and copies that the device runs in a step; on a CPU the operations of torch."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    decoder = model.start(prompts.tolist(), steps + 4)
    tokens = torch.full((len(prompts),), 5, device=device)
    for _ in range(2):
        decoder.step(tokens)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as seen:
        for _ in range(steps):
            decoder.step(tokens)
        if cuda:
            torch.cuda.synchronize()
    return sum(event.device_type == kind for event in seen.events()) / steps


# --- forwards and updates -----------------------------------------------------------------------------------


def scoring(base: Any, sizes: Sizes, options: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities and entropies of some rows, without gradients."""
    ids, mask = _rows(base, sizes)

    def score() -> None:
        with torch.no_grad(), base.role(POLICY, train=False):
            base.forwards.logps(base.forwards.hidden(ids.to(base.device)), ids, mask, entropy=True)

    return _figures(base, score, ids.numel(), passes=1)


def update(base: Any, sizes: Sizes, options: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward of some rows: what a micro-batch costs."""
    ids, mask = _rows(base, sizes)
    with base.training([POLICY]) as parameters, base.role(POLICY):

        def micro_step() -> None:
            hidden = base.forwards.hidden(ids.to(base.device))
            (base.forwards.logps(hidden, ids, mask)[0].sum() / ids.numel()).backward()
            for parameter in parameters:
                parameter.grad = None

        # The gradient in the input of a product is as much work as the product; weights have no gradient.
        return _figures(base, micro_step, ids.numel(), passes=3 if options["recompute"] else 2)


def _rows(base: Any, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, base.vocab_size, sizes.micro, generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, : sizes.micro[1] * 2 // 3] = False
    return ids, mask


def _figures(base: Any, work: Callable[[], None], tokens: int, passes: int) -> dict[str, Any]:
    work()
    gc.collect()
    memory = Memory(base.device)
    seconds = timed(work)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens/s": tokens / seconds,
        "flop/s": 2 * passes * tokens * linear_weights(base) / seconds,
        **memory.figures(),
    }


def linear_weights(base: Any) -> int:
    """Weights of the layers' products; the head, which takes part of the tokens only, is left out."""
    from rlhf_peft.engine.compat.lora import LoraLayer

    layers = [module for module in base.lm.modules() if isinstance(module, LoraLayer)]
    return sum(layer.in_features * layer.out_features for layer in layers)
