"""The memory that a plan has to fit into: of a GPU by name, of a size, or of this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import psutil
import torch

from ..engine import reserve_of
from ..errors import UsageError

GB = 1024**3
CARDS = {
    "gtx 1660": 6, "gtx 1080 ti": 11, "rtx 2060": 6, "rtx 2070": 8, "rtx 2080": 8, "rtx 2080 ti": 11,
    "rtx 3050": 8, "rtx 3060": 12, "rtx 3060 ti": 8, "rtx 3070": 8, "rtx 3070 ti": 8, "rtx 3080": 10,
    "rtx 3080 ti": 12, "rtx 3090": 24, "rtx 3090 ti": 24, "rtx 4060": 8, "rtx 4060 ti": 8, "rtx 4070": 12,
    "rtx 4070 ti": 12, "rtx 4070 super": 12, "rtx 4080": 16, "rtx 4090": 24, "rtx 5060": 8, "rtx 5070": 12,
    "rtx 5070 ti": 16, "rtx 5080": 16, "rtx 5090": 32, "t4": 16, "l4": 24, "a10": 24, "v100": 16,
    "l40s": 48, "a6000": 48, "a100": 40, "h100": 80, "h200": 141,
}  # fmt: skip
"""Card to GB; of cards that were sold with several sizes, the smallest."""

BEFORE_BF16 = ("gtx", "rtx 20", "t4", "v100")
"""Cards that have no bfloat16: `compute_dtype: auto` is float32 there."""

CONTEXT = GB // 2
"""Bytes of a GPU that CUDA and its libraries take."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory to plan for.

    Attributes:
        name: in words.
        device: cuda or cpu.
        total: bytes that are free now; for a GPU that is not in this machine, all its memory.
        reserve: bytes of them that are not used.
        bf16: whether the device computes in bfloat16.
    """

    name: str
    device: str
    total: int
    reserve: int
    bf16: bool = True

    @property
    def usable(self) -> int:
        """Bytes that may be used: the total less the reserve."""
        return self.total - self.reserve


def budget(gpu: str | None, device: str) -> Budget:
    """The memory of the GPU that `--gpu` names, or else of the recipe's device on this machine.

    Args:
        gpu: "12GB", "RTX 4070", or None.
        device: the recipe's, resolved: cuda or cpu.

    Raises:
        UsageError: it is no size and no known card.
    """
    if gpu is not None:
        size = parse_gpu(gpu)
        return Budget(
            gpu, "cuda", size, reserve_of(size) + CONTEXT, bf16=not card_name(gpu).startswith(BEFORE_BF16)
        )
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        name, bf16 = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
        return Budget(name, "cuda", free, reserve_of(free) + CONTEXT, bf16)
    free = int(psutil.virtual_memory().available)
    return Budget("this machine's memory", "cpu", free, reserve_of(free))


def this_gpu() -> str:
    """The GPU of this machine, as `--gpu` names it: by name where that is known, else by its size.

    Raises:
        UsageError: there is none.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            "--exact simulates a GPU, and there is none here: name one, such as --gpu 'RTX 4070'."
        )
    total = torch.cuda.get_device_properties(0).total_memory / GB
    name = torch.cuda.get_device_name()
    # Cards of a name were sold with several sizes, and the driver keeps some memory to itself.
    return f"{name} {round(total)}GB" if card_name(name) in CARDS else f"{total:.2f}GB"


SIZE = r"(\d+(?:\.\d+)?)\s*(?:gb|gib|g)\s*$"


def card_name(text: str) -> str:
    """A card's name as `CARDS` has it; a size behind it is left out."""
    name = re.sub(r"\b(nvidia|geforce|tesla)\b", "", re.sub(rf"\s{SIZE}", "", text.lower()))
    return re.sub(r"\b(rtx|gtx)(?=\d)", r"\1 ", " ".join(name.replace("-", " ").split()))


def parse_gpu(text: str) -> int:
    """Bytes of a size ("8GB", "11.5 GiB") or of a card ("RTX 4070", "nvidia geforce rtx 4060 ti 16 GB").

    Raises:
        UsageError: neither.
    """
    size, name = re.search(SIZE, text.lower()), card_name(text)
    alone = re.fullmatch(rf"\s*{SIZE}", text.lower())
    if size and float(size[1]) > 0 and (alone or name in CARDS):
        return int(float(size[1]) * GB)
    if not size and name in CARDS:
        return CARDS[name] * GB
    near = difflib.get_close_matches(name, CARDS, n=3)
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    raise UsageError(f"--gpu {text}: neither a size nor a known card.{meant} Give its memory: --gpu 12GB.")
