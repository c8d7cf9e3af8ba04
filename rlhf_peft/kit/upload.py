"""Copies to a card for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on a device.

    From ordinary memory CUDA copies only after all earlier work of the card is done, and the host waits for it. From
    pinned memory it copies when its turn comes, and the host goes on.
    """
    if torch.device(device).type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
