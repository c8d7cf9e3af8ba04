"""From two shallow models to the whole one: everything that a phase takes is a line in the number of layers.

    y(L) = y(a) + (L - a) * (y(b) - y(a)) / (b - a)

The peak is the largest of many lines. At two layers the logits may be what a phase peaks with, and at thirty the
activations: so the peak is extrapolated for each kind of allocation (operator, bytes, forward or backward) by itself,
and the largest one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

BEYOND = 0.03
"""What torch's allocator holds beyond its blocks, as a share of the blocks that deeper models have more.

It is pages that are not full and free pieces between blocks, which is no line in the number of layers. At full depth it
was 0 to 4 % of them in nineteen phases of eight recipes.
"""
TOTALS = ("launches", "reads", "moved", "flops", "seconds", "kernel_seconds")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one phase of a recipe takes on a card.

    Attributes:
        stage: its name.
        name: of the phase.
        peak: most bytes that are allocated at once.
        reserved: most bytes that torch's allocator holds.
        launches: kernels that are launched in a step.
        reads: how often the host waits for the card in a step.
        moved: bytes that kernels read and write in a step.
        flops: floating-point operations of a step.
        seconds: of a step, by the roofline.
        kernel_seconds: of the kernels of a step alone.
    """

    stage: str
    name: str
    peak: int
    reserved: int
    launches: float
    reads: float
    moved: float
    flops: float
    seconds: float
    kernel_seconds: float

    def repeated(self, times: float) -> Measured:
        """The same phase done so many times in a step."""
        return replace(self, **{key: times * getattr(self, key) for key in TOTALS})


def line(x: tuple[int, int], y: tuple[float, float], at: float) -> float:
    """The value at `at` of the line through two points."""
    (a, b), (low, high) = x, y
    return low if a == b else low + (at - a) * (high - low) / (b - a)


def peak_at(depths: tuple[int, int], phases: tuple[Mapping[str, Any], Mapping[str, Any]], layers: int) -> int:
    """The peak of a phase in bytes.

    Args:
        depths: numbers of layers.
        phases: the phase at each of them, as `measure` prints it.
        layers: of the whole model.
    """
    first, second = ({tuple(place): size for *place, size in phase["peaks"]} for phase in phases)
    whole = line(depths, (phases[0]["peak"], phases[1]["peak"]), layers)
    both = (line(depths, (size, second[place]), layers) for place, size in first.items() if place in second)
    return round(max([whole, *both]))


def extrapolated(
    depths: tuple[int, int], phases: tuple[Mapping[str, Any], Mapping[str, Any]], layers: int
) -> Measured:
    """A phase of the whole model; arguments as in `peak_at`."""
    totals = {key: line(depths, (phases[0][key], phases[1][key]), layers) for key in TOTALS}
    peak = peak_at(depths, phases, layers)
    beyond = max(phase["reserved"] - phase["peak"] for phase in phases)
    reserved = peak + beyond + BEYOND * (peak - phases[1]["peak"])
    return Measured(phases[0]["stage"], phases[0]["name"], peak, round(reserved), **totals)
