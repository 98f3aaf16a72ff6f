"""Encoded images in a plane, and the paths between two handles that drags move."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import Pan, PanEnd, PanStart, RangesUpdate
from bokeh.layouts import column
from bokeh.models import (
    Button,
    CheckboxButtonGroup,
    ColumnDataSource,
    Div,
    RadioButtonGroup,
    Select,
)
from torch import Tensor

from fastlatent.commands.exploration.chart import Chart, within
from fastlatent.commands.exploration.fields import fields
from fastlatent.commands.exploration.later import Later
from fastlatent.commands.exploration.parts import STYLE, Raster, beside
from fastlatent.commands.exploration.plane import Plane
from fastlatent.commands.exploration.walker import NAMES, SEARCHED, Strip, Walker, methods_of

if TYPE_CHECKING:
    from fastlatent.commands.exploration.page import Page

REACH = 0.06  # part of the map's width within which a drag takes a handle
CELL = 44  # pixels of the screen to an image of a strip
STALE = 0.35  # opacity of images of a path that has moved since
COLORS = {
    "linear": "black",
    "spherical": "#0072b2",
    "likelihood": "#d55e00",
    "geodesic": "#009e73",
    "copula": "black",
}


class Trail:
    """A path on the map, with its strip of images."""

    def __init__(self, view: "MapView", method: Any):
        self.method = method
        self.line = ColumnDataSource({"x": [], "y": []})
        view.chart.path(self.line, COLORS[method])
        self.strip = Raster(view.walker.steps, 1, CELL, NAMES[method], name=f"strip-{method}")
        self.strip.figure.title.text_color = COLORS[method]

    def show(self, strip: Strip, bits: bool) -> None:
        """Draw what was found."""
        self.line.data = {"x": strip.points[:, 0], "y": strip.points[:, 1]}
        self.strip.show(strip.pictures)
        self.strip.fade(1)
        ends = f"{strip.distance:.0f} bits" if bits else f"{strip.distance:.2f}"
        least = "" if strip.least is None else f", log p from {strip.least:.1f} nats up"
        rest = ", searching ..." if strip.rough else least
        self.strip.figure.title.text = (
            f"{NAMES[strip.method]}: {strip.length:.2f} long, ends {ends} apart{rest}"
        )

    def wait(self) -> None:
        """Show that what is drawn is no path between the handles any more."""
        self.line.data = {"x": [], "y": []}
        self.strip.fade(STALE)
        self.strip.figure.title.text = f"{NAMES[self.method]}: searching ..."


class MapView:
    """The map, its handles and the strips of decoded images."""

    KINDS = ("principal", "single")

    def __init__(self, page: "Page"):
        self.page, subject = page, page.subject
        self.walker = Walker(subject)
        self.held: str | None = None
        self.chart = Chart(subject)
        self.methods = methods_of(subject)
        self.trails = {method: Trail(self, method) for method in self.methods}
        self.fields = {field.name: field for field in fields(subject)}
        self.search, self.painting = (Later(subject, page.document, page.guarded) for _ in range(2))
        self.kind = RadioButtonGroup(labels=["Principal directions", "Single latents"], active=0)
        self.x = Select(title="Across", width=160)
        self.y = Select(title="Up", width=160)
        self.field = Select(
            title="Behind the dots",
            value="",
            options=[("", "nothing"), *((name, name) for name in self.fields)],
            width=340,
        )
        self.field.visible = bool(self.fields)
        self.chosen = CheckboxButtonGroup(
            labels=[NAMES[method] for method in self.methods], active=[0]
        )
        self.chosen.visible = len(self.methods) > 1
        self.buttons = {
            name: Button(label=f"{name} to the nearest image", width=170) for name in "AB"
        }
        self._offer()

        self.draw = page.soon(self._draw)
        page.on_change(self._change_kind, "active", self.kind)
        page.on_change(self._change_plane, "value", self.x, self.y)
        page.on_change(self._paint, "value", self.field)
        page.on_change(self._choose, "active", self.chosen)
        for name, button in self.buttons.items():
            button.on_click(page.guarded(partial(self._to_image, name)))
        for event, action in ((PanStart, self._take), (Pan, self._move), (PanEnd, self._let_go)):
            page.on_event(self.chart.figure, event, action)
        page.on_event(self.chart.figure, RangesUpdate, lambda event: self._paint())
        hint = Div(
            text="Drag A or B: each keeps its latents across the plane. Lengths are those of the "
            "polyline through the images shown, of pixels in 0 to 1. Hover over a dot to see its "
            f"image; the dots are {len(subject.latents):,} {subject.what}.",
            styles=STYLE,
            width=500,
        )
        controls = column(
            self.kind,
            beside(self.x, self.y),
            self.field,
            self.chart.scale,
            beside(*self.buttons.values()),
            self.chosen,
            *(trail.strip.figure for trail in self.trails.values()),
            hint,
        )
        self.layout = beside(self.chart.figure, controls)
        page.guarded(self._choose)()
        page.guarded(self._change_plane)()

    def _offer(self) -> None:
        """The directions of the kind that is chosen, the first two taken."""
        names = self.page.subject.directions(self.KINDS[self.kind.active]).names
        for k, select in enumerate((self.x, self.y)):
            select.options = [(str(i), name) for i, name in enumerate(names)]
            select.value = str(k)

    def _change_kind(self) -> None:
        self._offer()
        self._change_plane()

    def _change_plane(self) -> None:
        kind = self.KINDS[self.kind.active]
        x, y = int(self.x.value), int(self.y.value)
        self.walker.plane = plane = Plane.of_directions(self.page.subject, kind, x, y)
        # A handle may lie outside, because it was dragged along another plane.
        handles = np.array([self.walker.place(name) for name in "AB"])
        self.chart.place(plane.points(self.page.subject.latents).numpy(), handles, plane.names)
        self._draw()
        self._paint()

    def _choose(self) -> None:
        for k, trail in enumerate(self.trails.values()):
            trail.strip.figure.visible = k in self.chosen.active
            if k not in self.chosen.active:
                trail.line.data = {"x": [], "y": []}
        self._draw()

    def _take(self, event: PanStart) -> None:
        self.held = self.walker.nearest((event.x, event.y), REACH * self.chart.width)

    def _move(self, event: Pan) -> None:
        if self.held is not None:
            x_range, y_range = self.chart.figure.x_range, self.chart.figure.y_range
            self.walker.drag(self.held, (within(x_range, event.x), within(y_range, event.y)))
            self.draw()

    def _let_go(self, event: PanEnd) -> None:
        self._move(event)
        self.held = None  # what is drawn next is refined

    def _to_image(self, handle: str) -> None:
        self.walker.to_image(handle)
        self._draw()

    def put(self, handle: str, latents: Tensor) -> None:
        """Give a handle latents (d,), and show where that is."""
        self.walker.handles[handle] = latents
        self._change_plane()

    def _draw(self) -> None:
        self.chart.show_ends([self.walker.place(name) for name in "AB"])
        chosen = [self.methods[k] for k in self.chosen.active]
        for strip in self.walker.strips([m for m in chosen if m not in SEARCHED]):
            self._show(strip)
        searched = [method for method in chosen if method in SEARCHED]
        for method in searched:
            self.trails[method].wait()
        self.search.stop()
        if searched:
            strips = self.walker.strips(searched, refine=self.held is None)
            self.search.start(lambda: strips, self._show, every=True)

    def _show(self, strip: Strip) -> None:
        self.trails[strip.method].show(strip, self.page.subject.bits)

    def _paint(self) -> None:
        self.painting.stop()
        self.chart.paint(None, self.chart.window)
        field = self.fields.get(self.field.value)
        if field is not None:
            plane, window = self.walker.plane, self.chart.window

            def images() -> Iterator[np.ndarray]:
                return field.refined(plane, window)

            self.painting.start(images, partial(self.chart.paint, at=window))
