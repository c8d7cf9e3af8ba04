"""From two depths to the whole model."""

import pytest

from rlhf_peft.planning.exact.extrapolate import BEYOND, extrapolated, line, peak_at
from rlhf_peft.planning.exact.plan import depths_of


def phase(layers, peaks, **more):
    """A phase at a depth; each kind of allocation has a peak of its own, as a function of the depth."""
    each = [["op", i, False, size(layers)] for i, size in enumerate(peaks)]
    totals = {"launches": 10 + 5 * layers, "reads": 3, "moved": 2.0 * layers, "flops": 0.0}
    return {
        "stage": "rl",
        "name": "update",
        "peak": max(size for *_, size in each),
        "peaks": each,
        "reserved": max(size for *_, size in each) + 7,
        "seconds": 1.0 * layers,
        "kernel_seconds": 0.5 * layers,
        **totals,
        **more,
    }


def test_a_line():
    assert line((2, 3), (10.0, 14.0), 28) == 114.0
    assert line((4, 4), (9.0, 9.0), 4) == 9.0


def test_the_kind_of_allocation_that_peaks_may_change_with_the_depth():
    """At two layers the logits are the peak, at thirty the activations."""
    peaks = (lambda layers: 1000 + 10 * layers, lambda layers: 100 * layers)
    two, three = phase(2, peaks), phase(3, peaks)
    assert two["peak"] == 1020 and peak_at((2, 3), (two, three), 30) == 3000
    # The peaks of the phases alone are all logits.
    assert line((2, 3), (two["peak"], three["peak"]), 30) == 1300


def test_totals_are_lines_and_what_is_reserved_is_a_share_more():
    peaks = (lambda layers: 100 * layers,)
    whole = extrapolated((2, 3), (phase(2, peaks), phase(3, peaks)), 30)
    assert (whole.launches, whole.reads, whole.seconds) == (160, 3, 30.0)
    assert whole.reserved == round(3000 + 7 + BEYOND * 2700)
    twice = whole.repeated(2.0)
    assert (twice.launches, twice.seconds, twice.peak) == (320, 60.0, whole.peak)


@pytest.mark.parametrize(
    ("layers", "kinds", "depths"),
    [
        (28, None, (2, 3)),
        (28, ["full"] * 28, (2, 3)),
        (24, ["window", "window", "full"] * 8, (3, 6)),
        (3, None, (3, 3)),
        (6, ["window", "window", "full"] * 2, (6, 6)),
    ],
)
def test_depths_hold_whole_turns_of_the_kinds_of_layers(layers, kinds, depths):
    from types import SimpleNamespace

    assert depths_of(SimpleNamespace(num_hidden_layers=layers, layer_types=kinds)) == (depths, layers)
