"""CUDA graphs and streams of a simulated card.

What runs inside a capture is not counted. A replay counts as one launch, which moves the bytes and takes the operations
and seconds of all that was captured. Memory that is taken inside a capture belongs to the graph's pool, as long as one
of the pool's graphs lives. Reads by the host and copies from it raise, as CUDA does.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .compat import device_index, written_by
from .meter import Counts, Meter
from .mode import on_card, tensors_in, values_of

REFUSED = "CUDA error: operation not permitted when stream is capturing"
COPIES = frozenset({"_to_copy", "copy_", "where"})
"""Operators that copy a tensor of the CPU to the card, even a single number; others are given it with the launch."""


class Pool:
    """Memory of graphs: as much as was in use at once while they were captured.

    Args:
        meter: of the card.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._graphs = self._live = self._held = 0

    def took(self, storage: Any, size: int) -> None:
        """A storage was allocated inside a capture."""
        self._live += size
        weakref.finalize(storage, self._freed, size)
        if self._live > self._held:
            more, self._held = self._live - self._held, self._live
            self._meter.hold(more)

    def _freed(self, size: int) -> None:
        self._live -= size
        self._end()

    def begin(self) -> None:
        """One more graph."""
        self._graphs += 1

    def end(self) -> None:
        """A graph is no more."""
        self._graphs -= 1
        self._end()

    def _end(self) -> None:
        if self._graphs == 0:
            less, self._held = self._held - self._live, self._live
            self._meter.hold(-less)


class Capture:
    """What a meter asks while a graph is captured."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._written: dict[int, Tensor] = {}

    def refuse(self) -> None:
        """For what a capture does not allow.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(REFUSED)

    def runs(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operator is about to run.

        Raises:
            RuntimeError: it copies from the host.
        """
        name = func.overloadpacket.__name__
        for x in tensors_in(args, kwargs):
            if not on_card(x) and (name in COPIES or x.dim() > 0):
                self.refuse()
        for x in written_by(func, args):
            if on_card(x) and values_of(x) is not None:
                self._written[id(x)] = x

    def end(self) -> None:
        """Values that were written over are not known any more: every replay changes them."""
        for x in self._written.values():
            if values_of(x) is not None:
                del x.dry_run_values  # type: ignore[attr-defined]


class Stream:
    """A stream; order is that of the program, so that there is nothing to wait for."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = torch.device("cuda", device_index(device, optional=True))

    def wait_stream(self, other: Stream) -> None:
        """Wait for another one."""

    def synchronize(self) -> None:
        """Wait for this one."""


def present_graphs(meter: Meter) -> None:
    """Make `torch.cuda` answer for graphs and streams, for the rest of the process."""
    default = Stream(0)
    streams = [default]

    class CUDAGraph:
        """A graph of the simulated card."""

        def __init__(self, keep_graph: bool = False) -> None:
            self._counts: Counts | None = None
            self._seconds = 0.0
            self._outside = meter.now

        def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
            """Begin."""
            if self._counts is not None or meter.capture is not None or streams[-1] is default:
                raise RuntimeError(
                    "CUDA graphs must be captured once, one at a time, on a non-default stream."
                )
            pool = pool or Pool(meter)
            pool.begin()
            weakref.finalize(self, pool.end)
            meter.capture = Capture(pool)
            self._outside, meter.now = meter.now, Counts(peak=meter.live, reserved=meter.reserved)

        def capture_end(self) -> None:
            """End."""
            inside, meter.now = meter.now, self._outside
            meter.now.add(Counts(peak=inside.peak, reserved=inside.reserved, peaks=inside.peaks))
            capture, meter.capture = meter.capture, None
            capture.end()
            self._counts = Counts(
                launches=1,
                kernels=Counter(graph=1),
                moved=inside.moved,
                flops=inside.flops,
            )
            self._seconds = inside.kernel_seconds

        def replay(self) -> None:
            """Launch all that was captured."""
            if self._counts is None:
                raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
            if meter.capture is not None:
                meter.capture.refuse()
            meter.now.add(self._counts)
            meter.busy(self._seconds)

    @contextmanager
    def stream(wanted: Stream | None) -> Iterator[None]:
        streams.append(wanted or streams[-1])
        try:
            yield
        finally:
            streams.pop()

    @contextmanager
    def graph(
        cuda_graph: CUDAGraph,
        pool: Pool | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        streams.append(stream or Stream())
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            cuda_graph.capture_end()
            streams.pop()

    stand_ins: dict[str, Any] = {
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: Pool(meter),
        "Stream": Stream,
        "stream": stream,
        "current_stream": lambda device=None: streams[-1],
        "default_stream": lambda device=None: default,
        "is_current_stream_capturing": lambda: meter.capture is not None,
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
