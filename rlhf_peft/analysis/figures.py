"""Figures, drawn by matplotlib: as SVG that takes the colours of the page it stands on, or as PDF for a paper."""

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

INK, LINES = "#010203", "#040506"
"""Stand for the page's text and rules while a figure is drawn."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7f00", "#7f7f7f")
"""Okabe and Ito's, told apart by colour-blind readers too, on light and dark."""
DASHES = ("-", "--", ":", "-.")
FEW = 12
"""Points below which each is marked."""
SIZE = (4.6, 2.7)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf-peft",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": LINES,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINES,
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
    """A figure of so many inches and its axes, in our style, without a screen."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {**style, "axes.prop_cycle": cycler(color=COLOURS)}
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def svg(figure: Any, title: str) -> str:
    """The figure as an SVG element with a title for those who hear it."""
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
    text = text.replace(INK, "currentColor").replace(LINES, "var(--rule)")
    head, _, rest = text.partition(">")
    return f'{head} role="img" aria-label="{_escaped(title)}">{rest}'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def lines(title: str, curves: Sequence[Mapping[str, Curve]], x: str, share: bool = False) -> str:
    """Curves over steps, as SVG; the legend stands where there are several.

    Args:
        title: of the figure.
        curves: of each run, name to curve. Several runs have a colour each, and each figure its dashes.
        x: what the axis is.
        share: values are between 0 and 1, and the axis shows it.
    """
    from matplotlib.ticker import MaxNLocator

    with canvas() as (figure, axes):
        for run, own in enumerate(curves):
            for number, (name, found) in enumerate(own.items()):
                colour, dashes = (run, number) if len(curves) > 1 else (number, 0)
                axes.plot(
                    found.x,
                    found.y,
                    label=name,
                    color=COLOURS[colour % len(COLOURS)],
                    linestyle=DASHES[dashes % len(DASHES)],
                    marker="o" if len(found.x) < FEW else None,
                    markersize=3,
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if share:
            axes.set_ylim(-0.03, 1.03)
        _label(axes, x, "", sum(len(own) for own in curves) > 1)
        return svg(figure, title)


def path(title: str, curves: Mapping[str, Curve], x: str, y: str) -> str:
    """Curves whose x need not ascend, each point in its place and the last one marked."""
    with canvas() as (figure, axes):
        for name, found in curves.items():
            (line,) = axes.plot(found.x, found.y, label=name, alpha=0.8)
            if found.x:
                axes.plot(found.x[-1:], found.y[-1:], "o", color=line.get_color(), markersize=5)
        _label(axes, x, y, len(curves) > 1)
        return svg(figure, title)


def histogram(title: str, groups: Mapping[str, Sequence[float]], x: str) -> str:
    """How values are distributed, one outline a group."""
    import numpy

    with canvas() as (figure, axes):
        every = [value for values in groups.values() for value in values]
        edges = numpy.histogram_bin_edges(every, bins=24) if every else [0.0, 1.0]
        for name, values in groups.items():
            axes.hist(list(values), bins=edges, histtype="stepfilled", alpha=0.35, label=name)
        _label(axes, x, "answers", len(groups) > 1)
        return svg(figure, title)


def bars(title: str, groups: Mapping[str, Mapping[str, float]], x: str) -> str:
    """Parts of a whole, one bar a group."""
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


def calibration(title: str, groups: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """How often the answer that scored higher was the better one, against how sure the reward model was.

    Args:
        title: of the figure.
        groups: name to bins: mean probability, share that came true, pairs.
    """
    with canvas() as (figure, axes):
        axes.plot([0.5, 1.0], [0.5, 1.0], linestyle="--", color=LINES, label="as sure as right")
        for name, bins in groups.items():
            axes.plot([b[0] for b in bins], [b[1] for b in bins], marker="o", markersize=4, label=name)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.02)
        _label(axes, "how sure it was", "how often it was right", True)
        return svg(figure, title)


def _label(axes: Any, x: str, y: str, legend: bool) -> None:
    axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if legend:
        axes.legend(fontsize=8)


def paper(found: Comparison, file: Path) -> None:
    """A comparison as a figure for a paper (PDF, or what the name ends in): means with their intervals."""
    plain = {**STYLE, "pdf.fonttype": 42, "savefig.facecolor": "white", "savefig.dpi": 200}
    for key, value in plain.items():
        plain[key] = {INK: "black", LINES: "#cccccc"}.get(value, value) if isinstance(value, str) else value
    with canvas(plain) as (figure, axes):
        for group in found.groups:
            _band(axes, group.label, group.band)
        _label(axes, AXES[found.axis], found.figure, False)
        axes.legend(title=found.by, fontsize=8, title_fontsize=8)
        form = file.suffix.removeprefix(".").lower() or "pdf"
        told = {"Creator": None} if form == "pdf" else None
        write_output(
            file, lambda aside: figure.savefig(aside, format=form, bbox_inches="tight", metadata=told)
        )


def _band(axes: Any, label: str, found: Band) -> None:
    several = f" ({found.runs} runs)" if found.runs > 1 else ""
    (line,) = axes.plot(found.x, found.mean, label=f"{label}{several}")
    if found.runs > 1:
        axes.fill_between(found.x, found.low, found.high, alpha=0.2, color=line.get_color(), linewidth=0)
