"""What a dry run counts: memory, launches of kernels, reads by the host, bytes, operations and seconds.

Seconds are those of a roofline: a kernel takes as long as its bytes or its operations take at the card's rates. The
host launches kernels one after the other while the card works on earlier ones; where it waits for a value, both begin
anew. No kernel is as fast as that, so real seconds are more.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .allocator import Allocator, rounded

LAUNCH = 8e-6
"""Seconds that Python and torch take to launch a kernel: 7 to 8 microseconds are assumed for a desktop."""
SHORTEST = 2e-6
"""Seconds of the shortest kernel."""


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
        reserved: most bytes that torch's allocator had reserved.
        peaks: most bytes that were allocated when a kind of allocation was made; see `Meter.doing`.
        launches: kernels that were launched.
        kernels: name of an operator to its launches.
        host_reads: (kind, place) to how often the host waited for a value.
        uploads: bytes that were copied to the card.
        moved: bytes that kernels read and wrote.
        flops: floating-point operations.
        seconds: of the phase, by the roofline.
        kernel_seconds: of all kernels together, by the roofline.
    """

    peak: int = 0
    reserved: int = 0
    peaks: dict[Place, int] = field(default_factory=dict)
    launches: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    host_reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploads: int = 0
    moved: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    kernel_seconds: float = 0.0

    def add(self, other: Counts) -> None:
        """Add another phase; of peaks the larger ones count."""
        self.peak = max(self.peak, other.peak)
        self.reserved = max(self.reserved, other.reserved)
        for place, size in other.peaks.items():
            self.peaks[place] = max(self.peaks.get(place, 0), size)
        self.launches += other.launches
        self.kernels.update(other.kernels)
        self.host_reads.update(other.host_reads)
        self.uploads += other.uploads
        self.moved += other.moved
        self.flops += other.flops
        self.seconds += other.seconds
        self.kernel_seconds += other.kernel_seconds

    def repeat(self, times: float) -> None:
        """Count the phase as if it had been done so many times; its peaks stay."""
        self.launches = round(times * self.launches)
        self.kernels = Counter({key: round(times * n) for key, n in self.kernels.items()})
        self.host_reads = Counter({key: round(times * n) for key, n in self.host_reads.items()})
        self.uploads = round(times * self.uploads)
        self.moved *= times
        self.flops *= times
        self.seconds *= times
        self.kernel_seconds *= times


Place = tuple[str, int, bool]
"""A kind of allocation: the operator, the bytes, and whether it belongs to a backward pass."""


class Meter:
    """Counts of the present phase.

    Attributes:
        card: whose rates are used.
        doing: the operator that runs now, and whether it belongs to a backward pass.
        now: counts of the present phase.
        capture: the capture of a CUDA graph that is going on, see `graphs`; None: there is none.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.doing: tuple[str, bool] = ("", False)
        self.capture: Any = None
        self.now = Counts()
        self._known: Any = WeakIdKeyDictionary()
        self._allocator = Allocator()
        self._held = 0
        # Seconds on the clocks of the host and of the card since the phase began.
        self._host = self._card = 0.0

    @property
    def live(self) -> int:
        """Bytes that are allocated now."""
        return self._allocator.allocated + self._held

    @property
    def reserved(self) -> int:
        """Bytes that torch's allocator has reserved now."""
        return self._allocator.reserved + self._held

    def release(self) -> None:
        """Give back what is reserved and free."""
        self._allocator.release()

    def reset_peak(self) -> None:
        """Begin a new peak."""
        self.now.peak, self.now.reserved, self.now.peaks = self.live, self.reserved, {}

    def lap(self) -> Counts:
        """End a phase; returns its counts."""
        self._wait()
        ended, self.now = self.now, Counts(peak=self.live, reserved=self.reserved)
        return ended

    def allocated(self, tensor: Tensor) -> None:
        """Note a tensor on the card; its storage counts until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = rounded(storage.nbytes())
        if size == 0:
            return
        self._known[storage] = True
        if self.capture is not None:
            self.capture.pool.took(storage, size)
            return
        handle = self._allocator.allocate(size)
        self._grown(size)
        weakref.finalize(storage, self._allocator.free, handle)

    def hold(self, size: int) -> None:
        """So many bytes more, or less, are held by captured graphs, which have memory of their own."""
        self._held += size
        if size > 0:
            self._grown(size)

    def _grown(self, size: int) -> None:
        """Note the peaks after so many bytes more."""
        now, live = self.now, self.live
        now.peak, now.reserved = max(now.peak, live), max(now.reserved, self.reserved)
        place = (self.doing[0], size, self.doing[1])
        if now.peaks.get(place, 0) < live:
            now.peaks[place] = live

    def read(self, kind: str) -> None:
        """The host waits for a value of the card."""
        if self.capture is not None:
            self.capture.refuse()
        self.now.host_reads[kind, place()] += 1
        self._wait()

    def _wait(self) -> None:
        """The host waits until the card has done everything; that time belongs to the present phase."""
        self.now.seconds += max(self._host, self._card)
        self._host = self._card = 0.0

    def busy(self, seconds: float, launches: int = 1) -> None:
        """The host launches kernels, and they take so many seconds together; a capture only notes the seconds."""
        self.now.kernel_seconds += seconds
        if self.capture is None:
            self._host += launches * LAUNCH
            self._card = max(self._card, self._host) + seconds

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
        single = bool(inputs) and inputs[0].dtype == torch.float32
        rate = self.card.float32 if single else self.card.half
        self.now.moved += read + written
        self.now.flops += flops
        self.busy(max((read + written) / self.card.bandwidth, flops / rate, SHORTEST))

    def kernel(self, tensors: list[Tensor]) -> None:
        """A kernel of another library was launched; each of its tensors is read or written once."""
        moved = sum(_bytes(x) for x in tensors)
        self.now.launches += 1
        self.now.kernels["other"] += 1
        self.now.moved += moved
        self.busy(max(moved / self.card.bandwidth, SHORTEST))


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
    if name == "gemm_4bit":
        x, shape = args[0], args[2]
        return 2.0 * x.numel() * shape[0]
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
