"""Plots and the graph as SVG text: colours are the page's CSS variables, nothing is loaded.

Series are told apart by colour, marker and dash; every mark has a title that says its numbers.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import networkx as nx

WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 12, 44
N_COLOURS = 8  # --c0 .. --c7 in the page's style
ROOMS = ("ingest", "triples", "pairs", "finetune", "index", "serve", "fuse", "evaluate")

Point = tuple[float, float]


class Axis(NamedTuple):
    """A scale from numbers to pixels, and where it is marked."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two pixels."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return start + (end - start) * ((at - low) / (high - low) if high > low else 0.5)


def axis_from_zero(label: str, values: Sequence[float]) -> Axis:
    """From 0 to a little above the largest value, marked at about five round numbers."""
    top = max([*values, 1e-9])
    power = 10 ** math.floor(math.log10(top / 4))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m * 5 >= top)
    n = math.ceil(top / step - 1e-9)
    return Axis(label, 0, step * n, [step * i for i in range(n + 1)])


def colour(series: int) -> str:
    """The colour of a series; after eight they repeat, with another dash."""
    return f"var(--c{series % N_COLOURS})"


def marker(series: int, x: float, y: float, title: str = "", size: float = 4) -> str:
    """Circle, square, diamond or triangle at a point."""
    s, label = size, f"<title>{escape(title)}</title>" if title else ""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}"',
        f'<rect x="{x - s:.1f}" y="{y - s:.1f}" width="{2 * s}" height="{2 * s}"',
        f'<path d="M{x:.1f} {y - 1.4 * s:.1f}l{1.4 * s} {1.4 * s}l-{1.4 * s} {1.4 * s}'
        f'l-{1.4 * s} -{1.4 * s}z"',
        f'<path d="M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s} {2.3 * s}h-{2.6 * s}z"',
    )
    shape = shapes[series % len(shapes)]
    return f'{shape} fill="{colour(series)}">{label}</{shape[1:].split()[0]}>'


def _frame(x: Axis, y: Axis, marks: Sequence[str], alt: str) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt, quote=True)}">'
    ]
    for tick in y.ticks:
        at = y.place(tick, bottom, TOP)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{at + 4:.1f}">{tick:g}</text>')
    for tick in x.ticks:
        at = x.place(tick, LEFT, right)
        parts.append(f'<path class="grid" d="M{at:.1f} {bottom}v5"/>')
        parts.append(f'<text class="tick mid" x="{at:.1f}" y="{bottom + 18}">{tick:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="axis mid" x="{middle}" y="{HEIGHT - 6}">{escape(x.label)}</text>')
    across = f'transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)"'
    parts.append(f'<text class="axis mid" {across}>{escape(y.label)}</text>')
    return "\n".join([*parts, *marks, "</svg>"])


def line_plot(series: Mapping[str, Sequence[Point]], x: Axis, y: Axis, alt: str) -> str:
    """A line with markers per series, numbered in the order given."""
    marks = []
    for i, (name, points) in enumerate(series.items()):
        at = [
            (x.place(px, LEFT, WIDTH - RIGHT), y.place(py, HEIGHT - BOTTOM, TOP))
            for px, py in points
        ]
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in at)
        dash = f' stroke-dasharray="{2 + 4 * (i // N_COLOURS)} 4"' if i >= N_COLOURS else ""
        if at:
            marks.append(f'<path class="line" d="{path}" stroke="{colour(i)}"{dash}/>')
        for (px, py), (vx, vy) in zip(at, points, strict=True):
            said = f"{name}: {y.label} {vy:.3f} at {x.label} {vx:g}"
            marks.append(marker(i, px, py, said, 3.2))
    return _frame(x, y, marks, alt)


def scatter_plot(
    points: Mapping[str, Point], numbers: Mapping[str, int], x: Axis, y: Axis, alt: str
) -> str:
    """A named point per series; ``numbers`` says which colour and marker a name has."""
    marks, taken = [], []
    for name, (vx, vy) in sorted(points.items(), key=lambda p: -p[1][1]):
        px, py = x.place(vx, LEFT, WIDTH - RIGHT), y.place(vy, HEIGHT - BOTTOM, TOP)
        to_the_left = px > 0.66 * WIDTH
        line = py + 4
        while any(side == to_the_left and abs(line - other) < 13 for side, other in taken):
            line += 1  # names on one side stand below each other
        taken.append((to_the_left, line))
        where = (
            f'class="name end" x="{px - 9:.1f}"'
            if to_the_left
            else f'class="name" x="{px + 9:.1f}"'
        )
        said = f"{name}: {y.label} {vy:.3f} at {vx:.1f} {x.label}"
        marks.append(marker(numbers[name], px, py, said, 5))
        marks.append(f'<text {where} y="{line:.1f}">{escape(name)}</text>')
    return _frame(x, y, marks, alt)


def bar_plot(bars: Mapping[str, Sequence[float]], parts: Sequence[str], x: Axis, alt: str) -> str:
    """A bar per name, from top to bottom, of so many parts one after the other; a part's number
    is its place in ``parts``. Beside a bar stands its sum."""
    step, left, right = 24, 16 + 6.6 * max(map(len, bars), default=0), WIDTH - 52
    bottom = TOP + step * len(bars)
    height = bottom + BOTTOM
    shown = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt, quote=True)}">'
    ]
    for tick in x.ticks:
        at = x.place(tick, left, right)
        shown.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom + 5}"/>')
        shown.append(f'<text class="tick mid" x="{at:.1f}" y="{bottom + 18}">{tick:g}</text>')
    for no, (name, values) in enumerate(bars.items()):
        top, done = TOP + step * no + 4, 0.0
        shown.append(
            f'<text class="name end" x="{left - 7:.1f}" y="{top + 12}">{escape(name)}</text>'
        )
        for i, (part, value) in enumerate(zip(parts, values, strict=True)):
            start, end = (x.place(v, left, right) for v in (done, done + value))
            done += value
            shown.append(
                f'<rect x="{start:.1f}" y="{top}" width="{end - start:.1f}" height="{step - 8}" '
                f'fill="{colour(i)}"><title>{escape(f"{name}: {part} {value:.3g}")}</title></rect>'
            )
        at = x.place(done, left, right) + 6
        shown.append(f'<text class="tick" x="{at:.1f}" y="{top + 12}">{done:.3g}</text>')
    middle = (left + right) / 2
    shown.append(f'<text class="axis mid" x="{middle}" y="{height - 6}">{escape(x.label)}</text>')
    return "\n".join([*shown, "</svg>"])


def whisker(value: float, low: float, high: float, axis: Axis) -> str:
    """An interval with its mean on a short scale, for a table's cell."""
    at, start, end = (axis.place(v, 2, 88) for v in (value, low, high))
    return (
        '<svg class="whisker" viewBox="0 0 90 10" aria-hidden="true">'
        f'<path class="grid" d="M2 5H88"/><path class="interval" d="M{start:.1f} 5H{end:.1f}"/>'
        f'<circle cx="{at:.1f}" cy="5" r="3"/></svg>'
    )


def graph(edges: Mapping[str, Sequence[str]]) -> str:
    """Stages as boxes, coloured by room; ``edges`` maps a stage to the stages that it reads.

    A box stands right of all it reads. An edge that others imply is left out.
    """
    g = nx.DiGraph((u, name) for name, upstream in edges.items() for u in upstream)
    g.add_nodes_from(edges)
    columns: list[list[str]] = [list(layer) for layer in nx.topological_generations(g)]
    g = nx.transitive_reduction(g)
    row: dict[str, float] = {}
    for column in columns:
        near = {n: _mean([row[u] for u in g.predecessors(n)]) for n in column}
        column.sort(key=lambda n: (near[n], n))
        row |= {n: i for i, n in enumerate(column)}
    step, gap, x = 25, 64, 6.0
    height = step * max(map(len, columns), default=0) + 12
    place: dict[str, tuple[float, float, float]] = {}
    for column in columns:
        width = 6.6 * max(map(len, column)) + 16
        first = (height - step * len(column)) / 2
        place |= {n: (x, first + step * i + step / 2, width) for i, n in enumerate(column)}
        x += width + gap
    parts = []
    for u, n in sorted(g.edges):
        (ux, uy, uw), (nx_, ny, _) = place[u], place[n]
        start, bend = ux + uw, gap / 2
        parts.append(
            f'<path class="edge" d="M{start:.0f} {uy:.0f}C{start + bend:.0f} {uy:.0f} '
            f'{nx_ - bend:.0f} {ny:.0f} {nx_:.0f} {ny:.0f}"/>'
        )
    for name, (left, middle, width) in place.items():
        room = name.rpartition(":")[2].partition("@")[0]
        number = ROOMS.index(room) if room in ROOMS else len(ROOMS) - 1
        reads = ", ".join(edges.get(name, ())) or "no other stage"
        parts.append(
            f'<g><title>{escape(name)} reads {escape(reads)}</title><rect class="stage" rx="5" '
            f'x="{left:.0f}" y="{middle - 10:.0f}" width="{width:.0f}" height="20" '
            f'stroke="{colour(number)}"/><text class="name" x="{left + 8:.0f}" '
            f'y="{middle + 4:.0f}">{escape(name)}</text></g>'
        )
    size = f'viewBox="0 0 {x - gap + 6:.0f} {height:.0f}" width="{x - gap + 6:.0f}"'
    alt = f"{len(place)} stages and what each reads, from sources on the left to evaluations"
    return "\n".join([f'<svg {size} role="img" aria-label="{alt}">', *parts, "</svg>"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
