"""CUDA graphs: what a function launches is captured once, and launched again as a whole by one call.

Such a function takes nothing and returns nothing; it reads and writes tensors that stay where they are. It must not
let the host wait for the card, nor copy from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..compat.graph_memory import forget_failed_capture


class CudaGraphs:
    """Captures functions one after the other; each graph has memory of its own, as long as it lives.

    Args:
        device: the card.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream on which graphs are captured. A function must have run on it before it is captured."""
        present = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(present)
        try:
            # This context also brings the present stream back where ending a capture fails.
            with torch.cuda.stream(self._stream):
                yield
        finally:
            present.wait_stream(self._stream)

    def capture(self, function: Callable[[], object]) -> Callable[[], None]:
        """A function that launches what `function` launches; nothing is computed before it is called.

        Raises:
            RuntimeError: the function does what cannot be captured.
        """
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # Other threads, such as those that pin memory, may go on meanwhile.
        capturing = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with self.aside(), capturing:
                function()
        except BaseException:
            forget_failed_capture(self._stream.device, pool)
            raise
        return graph.replay
