"""What torch leaves undone where capturing a CUDA graph fails."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch


def forget_failed_capture(device: torch.device, pool: Any) -> None:
    """Let torch's allocator leave the state of capturing; in it no cached memory is given back.

    `CUDAGraph.capture_end` does so after it has ended the capture, and raises before where CUDA says that the capture
    is invalid (torch 2.8 to 2.13). The function for it has no public name. It refuses where there is nothing to leave.

    Args:
        device: the card.
        pool: of memory, given to the capture.
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    index = torch.cuda.current_device() if device.index is None else device.index
    if end is not None:
        with suppress(RuntimeError, TypeError):
            end(index, pool)
