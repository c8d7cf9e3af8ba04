"""Plots drawn with matplotlib: as SVG that takes the colours of its page, or as a file such as PDF for a paper."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic import write_output
from .compare import Comparison
from .curves import AXES, Band, Curve

TEXT_COLOUR, RULE_COLOUR = "#010203", "#040506"
"""Placeholder colours, which are replaced by the page's colours of text and rules in an SVG."""
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7f00", "#7f7f7f")
"""The palette of Okabe and Ito, which colour-blind readers can distinguish, on light and dark."""
DASHES = ("-", "--", ":", "-.")
MARKED_BELOW = 12
"""Curves with fewer points have a marker at each."""
SIZE = (4.6, 2.7)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf-peft",
    "font.size": 9,
    "text.color": TEXT_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlecolor": TEXT_COLOUR,
    "axes.edgecolor": RULE_COLOUR,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "grid.color": RULE_COLOUR,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.4,
}


@contextmanager
def canvas(style: Mapping[str, Any] = STYLE, size: tuple[float, float] = SIZE) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure of this size in inches and its axes, in our style, without a screen."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {**style, "axes.prop_cycle": cycler(color=CURVE_COLOURS)}
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def svg(figure: Any, title: str) -> str:
    """The matplotlib figure as an SVG element, with a title for screen readers."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(TEXT_COLOUR, "currentColor").replace(RULE_COLOUR, "var(--rule)")
    head, _, rest = text.partition(">")
    return f'{head} role="img" aria-label="{_escaped(title)}">{rest}'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def line_plot(title: str, curves: Sequence[Mapping[str, Curve]], x: str, share: bool = False) -> str:
    """Curves over steps, as SVG; there is a legend if there are several.

    Args:
        title: title of the plot.
        curves: for each run, its curves by name. If there are several runs, each run has a colour and each name a
            dash.
        x: label of the x axis.
        share: whether values are between 0 and 1; the axis then covers that range.
    """
    from matplotlib.ticker import MaxNLocator

    with canvas() as (figure, axes):
        for run, run_curves in enumerate(curves):
            for number, (name, curve) in enumerate(run_curves.items()):
                colour, dashes = (run, number) if len(curves) > 1 else (number, 0)
                axes.plot(
                    curve.x,
                    curve.y,
                    label=name,
                    color=CURVE_COLOURS[colour % len(CURVE_COLOURS)],
                    linestyle=DASHES[dashes % len(DASHES)],
                    marker="o" if len(curve.x) < MARKED_BELOW else None,
                    markersize=3,
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if share:
            axes.set_ylim(-0.03, 1.03)
        _label(axes, x, "", sum(len(run_curves) for run_curves in curves) > 1)
        return svg(figure, title)


def trajectory_plot(title: str, curves: Mapping[str, Curve], x: str, y: str) -> str:
    """Curves whose x need not ascend, as SVG; the last point of each is marked."""
    with canvas() as (figure, axes):
        for name, curve in curves.items():
            (line,) = axes.plot(curve.x, curve.y, label=name, alpha=0.8)
            if curve.x:
                axes.plot(curve.x[-1:], curve.y[-1:], "o", color=line.get_color(), markersize=5)
        _label(axes, x, y, len(curves) > 1)
        return svg(figure, title)


def histogram(title: str, groups: Mapping[str, Sequence[float]], x: str) -> str:
    """Distributions of values, one outline per group, as SVG."""
    import numpy

    with canvas() as (figure, axes):
        all_values = [value for values in groups.values() for value in values]
        edges = numpy.histogram_bin_edges(all_values, bins=24) if all_values else [0.0, 1.0]
        for name, values in groups.items():
            axes.hist(list(values), bins=edges, histtype="stepfilled", alpha=0.35, label=name)
        _label(axes, x, "answers", len(groups) > 1)
        return svg(figure, title)


def bar_plot(title: str, groups: Mapping[str, Mapping[str, float]], x: str) -> str:
    """Parts of a whole, one bar per group, as SVG."""
    with canvas(size=(SIZE[0], 1.3 + 0.35 * len(groups))) as (figure, axes):
        parts = list(dict.fromkeys(part for values in groups.values() for part in values))
        left = [0.0] * len(groups)
        for part in parts:
            widths = [values.get(part, 0.0) for values in groups.values()]
            axes.barh(list(groups), widths, left=left, label=part, height=0.5)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        axes.set_xlabel(x)
        figure.legend(loc="outside upper left", ncols=4, fontsize=8)
        return svg(figure, title)


def calibration_plot(title: str, groups: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """How often the answer with the higher score was the preferred one, against the reward model's confidence, as SVG.

    Args:
        title: title of the plot.
        groups: for each name, its bins: mean probability, share that was right, number of pairs.
    """
    with canvas() as (figure, axes):
        axes.plot([0.5, 1.0], [0.5, 1.0], linestyle="--", color=RULE_COLOUR, label="perfect calibration")
        for name, bins in groups.items():
            axes.plot([b[0] for b in bins], [b[1] for b in bins], marker="o", markersize=4, label=name)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.02)
        _label(axes, "predicted probability", "share that was right", True)
        return svg(figure, title)


def _label(axes: Any, x: str, y: str, legend: bool) -> None:
    """Label the axes, and add a legend."""
    axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if legend:
        axes.legend(fontsize=8)


def draw_comparison(comparison: Comparison, file: Path) -> None:
    """Draw a comparison for a paper (PDF, or the format of the file's suffix): means with their intervals."""
    style = {**STYLE, "pdf.fonttype": 42, "savefig.facecolor": "white", "savefig.dpi": 200}
    for key, value in style.items():
        style[key] = (
            {TEXT_COLOUR: "black", RULE_COLOUR: "#cccccc"}.get(value, value)
            if isinstance(value, str)
            else value
        )
    with canvas(style) as (figure, axes):
        for group in comparison.groups:
            _band(axes, group.label, group.band)
        _label(axes, AXES[comparison.axis], comparison.metric, False)
        axes.legend(title=comparison.by, fontsize=8, title_fontsize=8)
        form = file.suffix.removeprefix(".").lower() or "pdf"
        metadata = {"Creator": None} if form == "pdf" else None
        write_output(
            file, lambda aside: figure.savefig(aside, format=form, bbox_inches="tight", metadata=metadata)
        )


def _band(axes: Any, label: str, band: Band) -> None:
    """Draw the mean of a group, and its interval if there are several runs."""
    several = f" ({band.runs} runs)" if band.runs > 1 else ""
    (line,) = axes.plot(band.x, band.mean, label=f"{label}{several}")
    if band.runs > 1:
        axes.fill_between(band.x, band.low, band.high, alpha=0.2, color=line.get_color(), linewidth=0)
