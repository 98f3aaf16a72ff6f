"""Losses over the steps of training, drawn as SVG that the page's style colours."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby, pairwise

from fastlatent.commands.comparison.subject import Subject

WIDTH, HEIGHT = 440, 270  # of a panel, in units that a screen scales
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 40  # around its frame
SPARE = 5  # for half a mark
MOST = 400  # points of a line; of more, the means of as many stretches are drawn
MARKED = 60  # points of a line that get marks, at most
BEGINNING = 0.03  # share of the highest training losses that may lie above the frame

MARKS = (  # one after the other for the runs, around (0, 0)
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "M-2.7-2.7h5.4v5.4h-5.4z",
    "M0-3.6L3.4 2.6H-3.4z",
    "M0-3.8L3.8 0 0 3.8-3.8 0z",
    "M0 3.6L-3.4-2.6H3.4z",
    "M-3.4-1.1h2.3v-2.3h2.2v2.3h2.3v2.2h-2.3v2.3h-2.2v-2.3h-2.3z",
)
COLOURS = 6  # of the page's style; further runs share them and are dashed

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of one run."""

    run: int
    label: str
    kind: str  # "train" or "test"
    points: Points  # step, loss; infinite and NaN losses interrupt it


@dataclass
class Chart:
    """Curves that share an axis, because their values can be compared."""

    title: str
    loss: str  # which one, and its unit
    curves: list[Curve] = field(default_factory=list)


def charts_of(runs: Sequence[Subject]) -> list[Chart]:
    """Training and test losses, those of one scale together; those of alternating steps apart."""
    panels: dict[tuple[object, ...], Chart] = {}
    for place, run in enumerate(runs):
        losses = run.alternating_losses
        drawn = [("test", "loss")] + ([] if losses else [("train", "loss")])
        for kind, name in drawn:
            loss = f"loss, {run.model.loss_unit}"
            panel = panels.setdefault(run.scale, Chart(run.subject, loss))
            _add(panel, place, run, kind, name)
        for name in losses:
            loss = f"{name.replace('_', ' ')}, training"
            panel = panels.setdefault((*run.scale, name), Chart(run.subject, loss))
            _add(panel, place, run, "train", name)
    return [panel for panel in panels.values() if panel.curves]


def _add(panel: Chart, place: int, run: Subject, kind: str, name: str) -> None:
    points = thinned(run.curve(kind, name))
    if any(math.isfinite(value) for _, value in points):
        panel.curves.append(Curve(place, run.label, kind, points))


def thinned(points: Sequence[tuple[float, float]]) -> Points:
    """At most MOST points: the means of stretches of equal length where there are more."""
    if len(points) <= MOST:
        return list(points)
    bounds = [k * len(points) // MOST for k in range(MOST + 1)]
    parts = [points[a:b] for a, b in pairwise(bounds)]
    return [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]


def chart_svg(panel: Chart) -> str:
    """The panel, with its values in `data-` attributes for the page's script."""
    low, high, above = _range(panel)
    last = max(x for curve in panel.curves for x, _ in curve.points)
    x_ticks, y_ticks = ticks(0, last, 5), ticks(low, high, 5)
    frame = Frame(0, max(last, 1), low, high)
    name = escape(f"{panel.title}, {panel.loss}", quote=True)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}" '
        f'data-frame="{escape(json.dumps(frame.values()))}" '
        f'data-curves="{escape(json.dumps(_values(panel), separators=(",", ":")))}">'
    ]
    for x in x_ticks:
        # The last number must not run out of the panel.
        anchor = "end" if frame.x(x) > WIDTH - RIGHT - 8 else "middle"
        parts.append(f'<path class="grid" d="M{frame.x(x):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{frame.x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" '
            f'text-anchor="{anchor}">{x:,.6g}</text>'
        )
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {frame.y(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{frame.y(y) + 4:.1f}" '
            f'text-anchor="end">{y:,.6g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" '
        'text-anchor="middle">optimizer steps</text>'
    )
    # Its own coordinates cut off what lies above the frame; marks at the other sides are whole.
    width, height = WIDTH - LEFT - RIGHT + 2 * SPARE, HEIGHT - TOP - BOTTOM + SPARE
    parts.append(
        f'<svg x="{LEFT - SPARE}" y="{TOP}" width="{width}" height="{height}" '
        f'viewBox="{LEFT - SPARE} {TOP} {width} {height}">'
    )
    for curve in sorted(panel.curves, key=lambda curve: curve.kind == "test"):
        parts.append(_curve_svg(curve, frame))
    parts.append(f'<path class="cross" d="M0 {TOP}V{HEIGHT - BOTTOM}"/></svg></svg>')
    if above:
        parts.append('<p class="aside">The first training losses lie above the frame.</p>')
    return "".join(parts)


@dataclass(frozen=True)
class Frame:
    """Where values lie in a panel."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def values(self) -> list[float]:
        """The range of steps, and where it lies in the drawing."""
        return [self.left, self.right, LEFT, WIDTH - RIGHT, WIDTH]


def _range(panel: Chart) -> tuple[float, float, bool]:
    """The lowest and highest value to show, and whether others lie above."""
    values = {
        kind: sorted(y for c in panel.curves if c.kind == kind for _, y in c.points if _finite(y))
        for kind in ("train", "test")
    }
    train, test = values["train"], values["test"]
    low = min(train[:1] + test[:1])
    kept = train[: len(train) - int(BEGINNING * len(train))]
    high = max(kept[-1:] + test[-1:])
    margin = 0.04 * (high - low) or max(abs(high), 1) * 0.05
    return low - margin, high + margin, bool(train) and train[-1] > high + margin


def _curve_svg(curve: Curve, frame: Frame) -> str:
    runs = groupby(curve.points, key=lambda point: _finite(point[1]))
    pieces = [list(piece) for finite, piece in runs if finite]
    line = "".join(
        "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in piece) for piece in pieces
    )
    drawn = f'<path class="line" d="{line}"/>'
    if curve.kind == "test" and len(curve.points) <= MARKED:
        mark = MARKS[curve.run % len(MARKS)]
        drawn += "".join(
            f'<path class="mark" transform="translate({frame.x(x):.1f} {frame.y(y):.1f})" '
            f'd="{mark}"/>'
            for piece in pieces
            for x, y in piece
        )
    return (
        f'<g class="curve {curve.kind} {run_class(curve.run)}" data-run="{curve.run}">{drawn}</g>'
    )


def run_class(place: int) -> str:
    """The classes that give a run its colour, and dashes where colours repeat."""
    return f"c{place % COLOURS} d{min(place // COLOURS, 2)}"


def key_svg(place: int) -> str:
    """A piece of a run's line with its mark, for legends."""
    return (
        f'<svg class="key {run_class(place)}" viewBox="0 0 26 12" aria-hidden="true">'
        f'<path class="line" d="M1 6H25"/><path class="mark" transform="translate(13 6)" '
        f'd="{MARKS[place % len(MARKS)]}"/></svg>'
    )


def _values(panel: Chart) -> list[dict[str, object]]:
    """The points in numbers, short enough for a page."""
    return [
        {
            "run": curve.run,
            "name": curve.label,
            "kind": curve.kind,
            "points": [[x, float(f"{y:.6g}")] for x, y in curve.points if _finite(y)],
        }
        for curve in panel.curves
    ]


def ticks(low: float, high: float, most: int) -> Iterator[float]:
    """Round numbers from low to high, at most `most` + 1 of them."""
    span = high - low or 1
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * unit for factor in (1, 2, 5, 10) if span / (factor * unit) <= most)
    first = math.ceil(low / step - 1e-9)
    for k in range(first, math.floor(high / step + 1e-9) + 1):
        yield k * step


def _finite(value: float) -> bool:
    return math.isfinite(value)
