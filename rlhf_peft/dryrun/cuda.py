"""`torch.cuda` as it answers on a machine with the card of a dry run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .compat import device_index, stand_in_for_triton, treat_fakes_as_real
from .graphs import present_graphs
from .kernels import attention, rms_norm
from .mode import DryRun


def present_card(run: DryRun, cards: int = 1) -> None:
    """Make `torch.cuda` answer for the card of a dry run, for the rest of the process.

    As the real functions do, those that take a device with an index refuse one without.

    Args:
        run: whose card and meter are asked.
        cards: number of cards.
    """
    meter, card = run.meter, run.meter.card
    current = [0]

    def index(device: Any = None, optional: bool = True) -> int:
        if device is None or (isinstance(device, torch.device) and device.index is None and optional):
            return current[0]
        return int(device_index(device, optional=optional))

    def strict(device: Any = None) -> int:
        return current[0] if device is None else int(device_index(device))

    def set_device(device: Any) -> None:
        wanted = index(device)
        if not 0 <= wanted < cards:
            raise RuntimeError("CUDA error: invalid device ordinal")
        current[0] = wanted

    def free_and_total(device: Any = None) -> tuple[int, int]:
        index(device)
        return max(0, card.memory - meter.reserved), card.memory

    def properties(device: Any = None) -> Any:
        index(device)
        return SimpleNamespace(
            name=card.name,
            total_memory=card.memory,
            major=card.capability[0],
            minor=card.capability[1],
            multi_processor_count=card.multiprocessors,
        )

    stand_ins: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: cards,
        "current_device": lambda: current[0],
        "set_device": set_device,
        "synchronize": lambda device=None: None,
        "empty_cache": meter.release,
        "is_bf16_supported": lambda including_emulation=True: (
            card.capability >= (8, 0) or including_emulation
        ),
        "mem_get_info": free_and_total,
        "memory_reserved": lambda device=None: meter.reserved,
        "memory_allocated": lambda device=None: meter.live,
        "max_memory_allocated": lambda device=None: meter.now.peak,
        "max_memory_reserved": lambda device=None: meter.now.reserved,
        "reset_peak_memory_stats": lambda device=None: meter.reset_peak(),
        "get_per_process_memory_fraction": lambda device=None: (strict(device), 1.0)[1],
        "set_per_process_memory_fraction": lambda fraction, device=None: (strict(device), None)[1],
        "get_device_name": lambda device=None: card.name,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: card.capability,
        "get_rng_state_all": list,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "set_rng_state_all": lambda states: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    for name, function in stand_ins.items():
        setattr(torch.cuda, name, function)
    torch.nn.functional.scaled_dot_product_attention = attention
    torch.nn.functional.rms_norm = rms_norm
    present_graphs(meter)
    treat_fakes_as_real()
    stand_in_for_triton(meter.kernel)
