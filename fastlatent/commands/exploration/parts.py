"""Parts of views: a figure of small images, a row."""

import html
from typing import Any

import numpy as np
from bokeh.layouts import row
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from fastlatent.commands.exploration.mosaic import mosaic

CELL = 64  # pixels of the screen to a small image
STYLE = {"font-size": "14px"}


class Raster:
    """A figure of small images in rows, which the browser can save as PNG."""

    def __init__(self, columns: int, rows: int, cell: int = CELL, title: str = "", *, name: str):
        self.columns, self.rows = columns, rows
        self.source = ColumnDataSource({"image": []})
        self.figure = figure(
            name=name,
            width=columns * cell + 40,  # with the toolbar
            height=rows * cell + (30 if title else 8),
            x_range=(0, columns),
            y_range=(rows, 0),
            tools="save",
            toolbar_location="right",
            title=title or None,
            min_border=2,
        )
        self.figure.axis.visible = False
        self.figure.grid.visible = False
        self.figure.outline_line_color = None
        self.figure.toolbar.logo = None
        self.images = self.figure.image_rgba(
            "image",
            x=0,
            y=0,
            dw=columns,
            dh=rows,
            origin="bottom_left",  # at 0, which the flipped range has at the top
            anchor="bottom_left",
            source=self.source,
        )

    def show(self, pictures: np.ndarray) -> None:
        """Show images (n, h, w, c), as many as there are places."""
        sheet = np.ascontiguousarray(mosaic(pictures, self.columns))
        self.source.data = {"image": [sheet.view(np.uint32)[..., 0]]}

    def fade(self, opacity: float) -> None:
        """Show the images as dimly as that, 1 being as they are."""
        self.images.glyph.global_alpha = opacity

    def place(self, x: float, y: float) -> int | None:
        """The number of the image at a point; None outside."""
        if not (0 <= x < self.columns and 0 <= y < self.rows):
            return None
        return int(y) * self.columns + int(x)


def shell(command: str) -> str:
    """A command line as HTML, whose lines break between words, and in a word that fills one."""
    style = "display: inline-block; max-width: 100%; overflow-wrap: anywhere"
    words = (f'<span style="{style}">{html.escape(word)}</span>' for word in command.split(" "))
    return f'<code style="font-size: 13px">{" ".join(words)}</code>'


def beside(*parts: Any) -> Any:
    """Parts of a view side by side."""
    return row(*parts, spacing=16)
