"""Draws the rooms of the package and their imports: `python docs/make_picture.py` writes docs/rooms.svg.

The rows are the layers of the import contract in pyproject.toml. The arrows are read from the `import` statements of
every module. An import that also follows from a chain of other arrows is left out, so that the picture can be read.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "rlhf_peft"
PICTURE = ROOT / "docs" / "rooms.svg"

CHARACTER, PADDING, GAP, BOX, ROW, WIDTH = 7.4, 18, 14, 30, 74, 1080
"""Pixels: a character, a box's padding, between boxes, a box's height, between rows, the whole picture's width."""

STYLE = (
    "text{font:13px ui-monospace,monospace;fill:#1f2937;text-anchor:middle}"
    "rect{fill:#eef2ff;stroke:#6366f1;stroke-width:1}"
    "path{fill:none;stroke:#64748b;stroke-width:1;opacity:.6}"
)

Graph = Mapping[str, frozenset[str]]


def layers(root: Path = ROOT) -> list[list[str]]:
    """The rooms of each layer, the top layer first, from the import contract in pyproject.toml."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    return [
        [name.strip().removeprefix(f"{PACKAGE}.") for name in row.split("|")] for row in contract["layers"]
    ]


def imported(path: Path, package: Path) -> Iterator[str]:
    """The full names of everything that a file imports from the package, also inside of functions."""
    place = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = place[: len(place) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(rooms: Sequence[str], root: Path = ROOT) -> Graph:
    """Room to the other rooms that its modules import."""
    package = root / PACKAGE
    graph: dict[str, set[str]] = {room: set() for room in rooms}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room in graph:
            names = (name.split(".") for name in imported(path, package))
            graph[room] |= {n[1] for n in names if n[0] == PACKAGE and len(n) > 1} & graph.keys() - {room}
    return {room: frozenset(others) for room, others in graph.items()}


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that follow from chains of other arrows."""

    def below(room: str) -> set[str]:
        return {deep for other in graph[room] for deep in (other, *below(other))}

    return {
        room: frozenset(others - {deep for other in others for deep in below(other)})
        for room, others in graph.items()
    }


def places(rows: Sequence[Sequence[str]]) -> dict[str, tuple[float, float, float]]:
    """Room to the left edge, the top edge and the width of its box, in pixels; every row is centred."""
    out = {}
    for number, row in enumerate(rows):
        widths = [len(room) * CHARACTER + PADDING for room in row]
        left = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
        for room, width in zip(row, widths, strict=True):
            out[room] = (left, GAP + number * ROW, width)
            left += width + GAP
    return out


def draw(rows: Sequence[Sequence[str]], graph: Graph) -> str:
    """The picture as SVG.

    Args:
        rows: the rooms of each layer, the top layer first.
        graph: room to the rooms that an arrow leads to.
    """
    boxes, height = places(rows), GAP * 2 + (len(rows) - 1) * ROW + BOX
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>The rooms of {PACKAGE} and their imports</title>",
        f"<style>{STYLE}</style>",
        f'<rect x="0" y="0" width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
    ]
    for room in sorted(graph):
        for other in sorted(graph[room]):
            (x, y, width), (to, below, wide) = boxes[room], boxes[other]
            start, end, y = x + width / 2, to + wide / 2, y + BOX
            middle = (y + below) / 2
            lines.append(
                f'<path d="M{start:.1f} {y} C{start:.1f} {middle:.1f} {end:.1f} {middle:.1f} {end:.1f} {below}">'
                f"<title>{escape(room)} imports {escape(other)}</title></path>"
            )
    for room, (x, y, width) in boxes.items():
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BOX}" rx="5"/>')
        lines.append(f'<text x="{x + width / 2:.1f}" y="{y + 20}">{escape(room)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def picture(root: Path = ROOT) -> str:
    """The picture of the package as it is."""
    rows = layers(root)
    return draw(rows, reduced(imports([room for row in rows for room in row], root)))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
