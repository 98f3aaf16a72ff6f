"""The figure of a map: a field, dots of encoded images, paths and two handles."""

from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Div, HoverTool, LinearColorMapper, Range1d
from bokeh.palettes import Category10, Greys256, Turbo256
from bokeh.plotting import figure

from fastlatent.commands.exploration.parts import STYLE
from fastlatent.commands.exploration.subject import Subject

WIDTH, HEIGHT = 640, 560
BORDER = 0.03  # part of the map's sides that a dragged handle keeps away from them
SHADES = Greys256[255:140:-1]  # light enough for dots upon them
OUTER = 0.02  # part of a field's values that share its first and its last shade

Window = tuple[float, float, float, float]  # left, right, bottom, top


class Chart:
    """What a map shows; dots are images of a subject, coloured by their class."""

    def __init__(self, subject: Subject):
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
        self.field = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self.ends = ColumnDataSource({"x": [], "y": [], "name": []}, name="ends")
        self.figure = plot = figure(
            width=WIDTH,
            height=HEIGHT,
            x_range=Range1d(0, 1),  # fixed: others follow the path as it is dragged
            y_range=Range1d(0, 1),
            name="map",
            tools="wheel_zoom,box_zoom,reset,save",
            active_scroll="wheel_zoom",
            active_drag=None,  # a drag moves a handle
            background_fill_color="#fafafa",
            min_border_left=0,
        )
        plot.toolbar.logo = None
        self.shades = LinearColorMapper(palette=SHADES, nan_color="rgba(0, 0, 0, 0)")
        plot.image(
            "image", "x", "y", "dw", "dh", color_mapper=self.shades, source=self.field,
            level="underlay",
        )  # fmt: skip
        self.scale = Div(styles=STYLE, width=500, visible=False)
        self._scatter(bool(subject.classes))
        plot.scatter(
            "x", "y", size=22, fill_color="white", line_color="black", line_width=2,
            level="annotation", source=self.ends,
        )  # fmt: skip
        plot.text(
            "x", "y", "name", text_align="center", text_baseline="middle", source=self.ends,
            text_font_style="bold", text_font_size="14px", level="annotation",
        )  # fmt: skip

    def _scatter(self, labelled: bool) -> None:
        named = {"legend_group": "name"} if labelled else {}
        dots = self.figure.scatter(
            "x",
            "y",
            size=8,
            fill_color="color",
            fill_alpha=0.85,
            line_color="white",
            line_width=0.5,
            source=self.dots,
            **named,
        )
        tip = (
            '<div><img src="@picture" width="84" style="image-rendering: pixelated">'
            "<br>@number &nbsp; @name</div>"
        )
        self.figure.add_tools(HoverTool(renderers=[dots], tooltips=tip))
        if labelled:
            self.figure.add_layout(self.figure.legend[0], "right")

    def path(self, source: ColumnDataSource, color: str) -> None:
        """Draw a path of points."""
        self.figure.line("x", "y", line_width=2, color=color, source=source)
        self.figure.scatter("x", "y", size=5, color=color, source=source)

    @property
    def window(self) -> Window:
        """What is shown."""
        x, y = self.figure.x_range, self.figure.y_range
        return x.start, x.end, y.start, y.end

    @property
    def width(self) -> float:
        """The larger side of what is shown."""
        left, right, bottom, top = self.window
        return max(right - left, top - bottom)

    def place(self, dots: np.ndarray, handles: np.ndarray, names: tuple[str, str]) -> None:
        """Put the dots (n, 2) where they are in a plane, and show all of them and the handles."""
        self.dots.data = {**self.dots.data, "x": dots[:, 0], "y": dots[:, 1]}
        shown = np.concatenate([dots, handles])
        low, high = shown.min(0), shown.max(0)
        room = 0.08 * (high - low) + 1e-6
        for axis, k in ((self.figure.x_range, 0), (self.figure.y_range, 1)):
            start, end = float(low[k] - room[k]), float(high[k] + room[k])
            axis.update(start=start, end=end, reset_start=start, reset_end=end)
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = names

    def show_ends(self, places: list[tuple[float, float]]) -> None:
        """Put the handles A and B to these points."""
        x, y = zip(*places, strict=True)
        self.ends.data = {"x": [*x], "y": [*y], "name": ["A", "B"]}

    def paint(self, image: np.ndarray | None, at: Window) -> None:
        """Show a field (side, side) on a window, the bottom row first; None: none."""
        known = np.empty(0) if image is None else image[np.isfinite(image)]
        self.scale.visible = bool(known.size)
        if not known.size:
            self.field.data = {"image": [], "x": [], "y": [], "dw": [], "dh": []}
            return
        low, high = (float(v) for v in np.quantile(known, [OUTER, 1 - OUTER]))
        self.shades.update(low=low, high=high if high > low else low + 1)
        self.scale.text = (
            f"{low:.4g} &nbsp; <span style='display: inline-block; width: 160px; height: 12px; "
            f"border: 1px solid #ccc; background: linear-gradient(to right, {SHADES[0]}, "
            f"{SHADES[-1]})'></span> &nbsp; {high:.4g} and above"
        )
        left, right, bottom, top = at
        self.field.data = {
            "image": [image], "x": [left], "y": [bottom], "dw": [right - left],
            "dh": [top - bottom],
        }  # fmt: skip


def within(axis: Any, value: float) -> float:
    """The value, or where a handle still lies whole within the range of the axis."""
    border = BORDER * (axis.end - axis.start)
    return min(max(value, axis.start + border), axis.end - border)


def palette(n: int) -> list[str]:
    """Colours of n classes."""
    if n <= 10:
        return [*Category10[10][:n]]
    return [Turbo256[round(k * 255 / (n - 1))] for k in range(n)]
