"""What a dry run counts: memory, launches of kernels, reads by the host, bytes and operations."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

BLOCK = 512
"""Bytes to which torch's allocator rounds."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a roofline needs to know about a card.

    Attributes:
        name: of the card.
        memory: bytes.
        bandwidth: bytes a second.
        float32: operations a second in float32.
        half: operations a second of dense products in 16 bits with float32 accumulation.
        multiprocessors: number of them.
        capability: major and minor compute capability.
    """

    name: str
    memory: int
    bandwidth: float
    float32: float
    half: float
    multiprocessors: int
    capability: tuple[int, int]


@dataclass(slots=True)
class Counts:
    """What happened in one phase.

    Attributes:
        peak: most bytes that were allocated at once.
        launches: kernels that were launched.
        kernels: name of an operator to its launches.
        host_reads: (kind, place) to how often the host waited for a value.
        uploads: bytes that were copied to the card.
        moved: bytes that kernels read and wrote.
        flops: floating-point operations.
        seconds: of the kernels, each as long as its bytes or its operations take at the card's rates.
    """

    peak: int = 0
    launches: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    host_reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploads: int = 0
    moved: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, other: Counts) -> None:
        """Add another phase; the peak is the larger one."""
        self.peak = max(self.peak, other.peak)
        self.launches += other.launches
        self.kernels.update(other.kernels)
        self.host_reads.update(other.host_reads)
        self.uploads += other.uploads
        self.moved += other.moved
        self.flops += other.flops
        self.seconds += other.seconds


class Meter:
    """Counts of the present phase, and of all phases so far.

    Attributes:
        card: whose rates are used.
        live: bytes that are allocated now.
        now: counts of the present phase.
        phases: name to counts.
        capture: the capture of a CUDA graph that is going on, see `graphs`; None: there is none.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.live = 0
        self.capture: Any = None
        self.now = Counts()
        self.phases: dict[str, Counts] = {}
        self._known: Any = WeakIdKeyDictionary()

    def lap(self, name: str) -> Counts:
        """End a phase; returns its counts, which are added to earlier phases of that name."""
        ended, self.now = self.now, Counts(peak=self.live)
        self.phases.setdefault(name, Counts()).add(ended)
        return ended

    def allocated(self, tensor: Tensor) -> None:
        """Note a tensor on the card; its storage counts until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        if size == 0:
            return
        self._known[storage] = True
        if self.capture is not None:
            self.capture.pool.took(storage, size)
            return
        self.live += size
        self.now.peak = max(self.now.peak, self.live)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live -= size

    def read(self, kind: str) -> None:
        """The host waits for a value of the card."""
        if self.capture is not None:
            self.capture.refuse()
        self.now.host_reads[kind, place()] += 1

    def launched(self, operator: Any, inputs: list[Tensor], outputs: list[Tensor], flops: float) -> None:
        """A kernel was launched.

        Args:
            operator: of torch.
            inputs: tensors on the card.
            outputs: tensors on the card.
            flops: operations that it takes.
        """
        name = operator.overloadpacket.__name__
        self.now.launches += 1
        self.now.kernels[name] += 1
        known = {id(x) for x in inputs}
        written = sum(_bytes(x) for x in outputs if id(x) not in known)
        read = sum({id(x): _bytes(x) for x in inputs}.values())
        if name in PICKING and written:
            read = min(read, 2 * written)
        if name in PLACING:
            read = written = sum(_bytes(x) for x in inputs[1:])
        single = bool(outputs) and outputs[0].dtype == torch.float32
        rate = self.card.float32 if single else self.card.half
        self.now.moved += read + written
        self.now.flops += flops
        self.now.seconds += max((read + written) / self.card.bandwidth, flops / rate)

    def kernel(self, tensors: list[Tensor]) -> None:
        """A kernel of another library was launched; each of its tensors is read or written once."""
        moved = sum(_bytes(x) for x in tensors)
        self.now.launches += 1
        self.now.kernels["other"] += 1
        self.now.moved += moved
        self.now.seconds += moved / self.card.bandwidth


PICKING = frozenset(
    {"embedding", "index", "gather", "index_select", "index_put", "index_put_", "scatter", "scatter_add"}
)
"""Operators that read a part of their input, no larger than their output."""
PLACING = frozenset({"index_copy_"})
"""Operators that write a part of their first input, as large as the others."""


def flops_of(operator: Any, args: Any) -> float:
    """Floating-point operations of a matrix product or of fused attention; 0 for other operators."""
    name = operator.overloadpacket.__name__
    if name in PRODUCTS:
        left, right = args[PRODUCTS[name] :][:2]
        return 2.0 * left.numel() * right.shape[-1]
    if name.startswith("_scaled_dot_product") and "math" not in name:
        backward = "backward" in name
        query, key = args[1:3] if backward else args[:2]
        count = 4.0 * query.numel() * key.shape[2] * (2.5 if backward else 1.0)
        # Without a mask between prompts and completions attention is causal: half of the pairs.
        return count / 2 if query.shape[2] == key.shape[2] else count
    return 0.0


PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
"""Operators that are matrix products, and where their two matrices begin among their arguments."""


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def place() -> str:
    """The innermost line of this package, the dry run aside, that led here; else of another library."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if "/rlhf_peft/" in file and "/rlhf_peft/dryrun/" not in file:
            return f"{file.rsplit('/rlhf_peft/', 1)[-1]}:{frame.f_lineno}"
        if not other and "/torch/" not in file and "/rlhf_peft/dryrun/" not in file:
            other = f"{file.rsplit('/site-packages/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return other or "?"
