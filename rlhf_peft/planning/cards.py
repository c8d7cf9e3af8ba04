"""What a roofline and bitsandbytes' choice of kernels need to know about a card.

Sources: NVIDIA's architecture papers and data sheets of Turing, Ampere, Ada, Hopper and Blackwell. Operations in 16
bits are dense products with float32 accumulation, which is half of the advertised number on GeForce cards.
"""

from __future__ import annotations

from dataclasses import replace

from ..dryrun.meter import Card
from .gpus import CONTEXT, GB, card_name, parse_gpu


def _card(
    name: str, gigabytes: int, bandwidth: float, float32: float, half: float, processors: int, capability: str
) -> Card:
    """A card; bandwidth in GB/s, operations in TFLOP/s."""
    major, minor = capability.split(".")
    return Card(
        name,
        gigabytes * GB,
        bandwidth * 1e9,
        float32 * 1e12,
        half * 1e12,
        processors,
        (int(major), int(minor)),
    )


ROOFLINES = {
    card.name.lower(): card
    for card in (
        _card("T4", 16, 320, 8.1, 65, 40, "7.5"),
        _card("RTX 3060", 12, 360, 12.7, 25.6, 28, "8.6"),
        _card("RTX 3090", 24, 936, 35.6, 71, 82, "8.6"),
        _card("A10", 24, 600, 31.2, 125, 72, "8.6"),
        _card("A100", 40, 1555, 19.5, 312, 108, "8.0"),
        _card("RTX 4060", 8, 272, 15.1, 30.2, 24, "8.9"),
        _card("RTX 4060 Ti", 16, 288, 22.1, 44.1, 34, "8.9"),
        _card("RTX 4070", 12, 504, 29.1, 58.3, 46, "8.9"),
        _card("RTX 4080", 16, 717, 48.7, 97.5, 76, "8.9"),
        _card("RTX 4090", 24, 1008, 82.6, 165, 128, "8.9"),
        _card("L4", 24, 300, 30.3, 121, 58, "8.9"),
        _card("RTX 5070 Ti", 16, 896, 43.9, 87.9, 70, "12.0"),
        _card("RTX 5090", 32, 1792, 104.8, 209.5, 170, "12.0"),
        _card("H100", 80, 3350, 67, 989, 132, "9.0"),
        _card("H200", 141, 4800, 67, 989, 132, "9.0"),
    )
}
"""Name in lower case to card. The RTX 4060 Ti is the one with 16 GB."""

TYPICAL = ROOFLINES["rtx 4070"]


def card_of(gpu: str) -> tuple[Card, bool]:
    """The card that `--gpu` names, and whether its speed is known.

    For a size, and for a card that is not in `ROOFLINES`, kernels are chosen as an RTX 4070 would. What CUDA itself
    takes is not part of the card's memory.

    Raises:
        UsageError: it is neither a size nor a known card.
    """
    known = ROOFLINES.get(card_name(gpu))
    memory = parse_gpu(gpu) - CONTEXT
    return replace(known or TYPICAL, name=gpu, memory=memory), known is not None
