"""Encoded images in a plane, and the path between two handles that drags move."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import Pan, PanEnd, PanStart
from bokeh.layouts import column
from bokeh.models import Button, ColumnDataSource, Div, HoverTool, RadioButtonGroup, Range1d, Select
from bokeh.palettes import Category10, Turbo256
from bokeh.plotting import figure

from fastlatent.commands.exploration.parts import STYLE, Raster, beside
from fastlatent.commands.exploration.plane import Plane, Walker

if TYPE_CHECKING:
    from fastlatent.commands.exploration.page import Page

WIDTH, HEIGHT = 720, 460
REACH = 0.06  # part of the map's width within which a drag takes a handle
BORDER = 0.03  # part of the map's sides that a dragged handle keeps away from them


class MapView:
    """The map, its handles and the strip of decoded images."""

    KINDS = ("principal", "single")

    def __init__(self, page: "Page"):
        self.page, subject = page, page.subject
        self.walker = Walker(subject)
        self.held: str | None = None
        classes = subject.classes or ("",) * len(subject.latents)
        names = sorted({*classes})
        colors = dict(zip(names, palette(len(names)), strict=True))
        self.dots = ColumnDataSource(
            {
                "name": [*classes],
                "color": [colors[name] for name in classes],
                "picture": subject.thumbnails,
                "number": [*range(len(classes))],
                "x": [0.0] * len(classes),
                "y": [0.0] * len(classes),
            }
        )
        self.path = ColumnDataSource({"x": [], "y": []})
        self.ends = ColumnDataSource({"x": [], "y": [], "name": []}, name="ends")
        self.figure = self._figure(bool(subject.classes))
        self.kind = RadioButtonGroup(labels=["Principal directions", "Single latents"], active=0)
        self.x = Select(title="Across", width=160)
        self.y = Select(title="Up", width=160)
        self.buttons = {
            name: Button(label=f"{name} to the nearest image", width=180) for name in "AB"
        }
        self.strip = Raster(
            self.walker.steps, 1, title="straight path from A to B, decoded", name="strip"
        )
        self.text = Div(styles=STYLE, width=340)
        self._offer()

        self.draw = page.soon(self._draw)
        page.on_change(self._change_kind, "active", self.kind)
        page.on_change(self._change_plane, "value", self.x, self.y)
        for name, button in self.buttons.items():
            button.on_click(page.guarded(partial(self._to_image, name)))
        hint = Div(
            text="Drag A or B: each keeps its latents across the plane. Hover over a dot to see "
            f"its image. The dots are {len(classes):,} {subject.what}.",
            styles=STYLE,
            width=340,
        )
        controls = column(
            self.kind, beside(self.x, self.y), *self.buttons.values(), self.text, hint
        )
        self.layout = column(beside(self.figure, controls), self.strip.figure)
        page.guarded(self._change_plane)()

    def _figure(self, labelled: bool) -> Any:
        plot = figure(
            width=WIDTH,
            height=HEIGHT,
            x_range=Range1d(0, 1),  # fixed: others follow the path as it is dragged
            y_range=Range1d(0, 1),
            name="map",
            tools="wheel_zoom,box_zoom,reset,save",
            active_scroll="wheel_zoom",
            active_drag=None,  # a drag moves a handle
            background_fill_color="#fafafa",
        )
        plot.toolbar.logo = None
        named = {"legend_group": "name"} if labelled else {}
        dots = plot.scatter(
            "x", "y", size=7, color="color", alpha=0.75, line_color=None, source=self.dots, **named
        )
        plot.add_tools(
            HoverTool(
                renderers=[dots],
                tooltips=(
                    '<div><img src="@picture" width="84" style="image-rendering: pixelated">'
                    "<br>@number &nbsp; @name</div>"
                ),
            )
        )
        plot.line("x", "y", line_width=2, color="black", source=self.path)
        plot.scatter("x", "y", size=5, color="black", source=self.path)
        plot.scatter(
            "x",
            "y",
            size=22,
            fill_color="white",
            line_color="black",
            line_width=2,
            source=self.ends,
        )
        plot.text(
            "x", "y", "name", text_align="center", text_baseline="middle", source=self.ends,
            text_font_style="bold", text_font_size="14px",
        )  # fmt: skip
        if labelled:
            plot.add_layout(plot.legend[0], "right")
        self.page.on_event(plot, PanStart, self._take)
        self.page.on_event(plot, Pan, self._move)
        self.page.on_event(plot, PanEnd, self._let_go)
        return plot

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
        self.walker.plane = Plane.of_directions(self.page.subject, kind, x, y)
        points = self.walker.plane.points(self.page.subject.latents).numpy()
        self.dots.data = {**self.dots.data, "x": points[:, 0], "y": points[:, 1]}
        # A handle may lie outside, because it was dragged along another plane.
        shown = np.concatenate([points, [self.walker.place(name) for name in "AB"]])
        low, high = shown.min(0), shown.max(0)
        room = 0.08 * (high - low) + 1e-6
        self.width = float(max(high - low + 2 * room))
        for axis, k in ((self.figure.x_range, 0), (self.figure.y_range, 1)):
            start, end = float(low[k] - room[k]), float(high[k] + room[k])
            axis.update(start=start, end=end, reset_start=start, reset_end=end)
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = self.walker.plane.names
        self._draw()

    def _take(self, event: PanStart) -> None:
        self.held = self.walker.nearest((event.x, event.y), REACH * self.width)

    def _move(self, event: Pan) -> None:
        if self.held is not None:
            x, y = within(self.figure.x_range, event.x), within(self.figure.y_range, event.y)
            self.walker.drag(self.held, (x, y))
            self.draw()

    def _let_go(self, event: PanEnd) -> None:
        self._move(event)
        self.held = None

    def _to_image(self, handle: str) -> None:
        self.walker.to_image(handle)
        self._draw()

    def _draw(self) -> None:
        places = [self.walker.place(name) for name in "AB"]
        x, y = zip(*places, strict=True)
        self.ends.data = {"x": [*x], "y": [*y], "name": ["A", "B"]}
        strip = self.walker.strip()
        self.path.data = {"x": strip.points[:, 0], "y": strip.points[:, 1]}
        self.strip.show(strip.pictures)
        apart = (
            f"{strip.distance:.0f} bits differ"
            if self.page.subject.bits
            else f"{strip.distance:.2f} between latents"
        )
        self.text.text = (
            f"<b>From A to B:</b> {apart}, {strip.length:.2f} along the decoded images "
            "(Euclidean, pixels in 0 to 1)."
        )


def within(axis: Any, value: float) -> float:
    """The value, or where a handle still lies whole within the range of the axis."""
    border = BORDER * (axis.end - axis.start)
    return min(max(value, axis.start + border), axis.end - border)


def palette(n: int) -> list[str]:
    """Colours of n classes."""
    if n <= 10:
        return [*Category10[10][:n]]
    return [Turbo256[round(k * 255 / (n - 1))] for k in range(n)]
