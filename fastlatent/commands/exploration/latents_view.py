"""Latents moved by hand: sliders for real ones, switches for bits, the decoded image beside."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from bokeh.events import Tap
from bokeh.layouts import column
from bokeh.models import Button, ColumnDataSource, Div, RadioButtonGroup, Select, Slider, Spinner
from bokeh.plotting import figure
from torch import Tensor

from fastlatent.commands.exploration.parts import STYLE, Raster, beside
from fastlatent.commands.exploration.subject import Directions

if TYPE_CHECKING:
    from fastlatent.commands.exploration.page import Page

ON, OFF = "#2f6fb0", "#e4e4e4"
LARGE = 220  # pixels of the screen to a large image


class LatentsView:
    """A base, which is an image, a sample or the mean, and what hands make of it."""

    def __init__(self, page: "Page"):
        self.page = page
        subject = page.subject
        last = len(subject.latents) - 1
        self.image = Spinner(title=f"Image, 0 to {last}", low=0, high=last, value=0, width=140)
        self.reset = Button(label="Reset", width=140)
        self.of = Div(styles=STYLE, width=300)
        self.raster = Raster(2, 1, LARGE, "base, and as moved by hand", name="moved")
        self.decode = page.soon(self._decode)
        self.hands = BitHands(self) if subject.bits else RealHands(self)
        page.on_change(self._take_image, "value", self.image)
        self.reset.on_click(page.guarded(lambda: self.take(self.base, self.name)))
        picture = column(beside(self.image, self.reset), self.of, self.raster.figure)
        self.layout = beside(self.hands.layout, picture)
        page.guarded(self._take_image)()

    def take(self, base: Tensor, name: str) -> None:
        """Begin from latents (d,)."""
        self.base, self.name = base, name
        self.of.text = f"Base: {name}"
        self.hands.begin(base)
        self._decode()

    def _take_image(self) -> None:
        k = int(self.image.value or 0)
        label = self.page.subject.classes
        of = f", class {label[k]}" if label else ""
        self.take(self.page.subject.latents[k], f"image {k} of the {self.page.subject.what}{of}")

    def _decode(self) -> None:
        both = torch.stack([self.base, self.hands.moved(self.base)])
        self.raster.show(self.page.subject.pictures(both))


class RealHands:
    """Sliders along directions, in standard deviations from the base."""

    KINDS = ("principal", "single")

    def __init__(self, view: LatentsView):
        self.view, subject = view, view.page.subject
        self.kind = RadioButtonGroup(labels=["Principal directions", "Single latents"], active=0)
        self.mean = Button(label="Begin from the mean", width=160)
        count = max(len(subject.directions(kind)) for kind in self.KINDS)
        self.sliders = [
            Slider(start=-4, end=4, step=0.05, value=0, width=330) for _ in range(count)
        ]
        view.page.on_change(view.decode, "value", *self.sliders)
        view.page.on_change(self._change_kind, "active", self.kind)
        self.mean.on_click(view.page.guarded(lambda: view.take(subject.mean, "the mean")))
        unit = Div(text="in standard deviations of the known latents", styles=STYLE)
        self.layout = column(self.kind, unit, *self.sliders, self.mean)
        self._name()

    @property
    def directions(self) -> Directions:
        """Those of the kind that is chosen."""
        return self.view.page.subject.directions(self.KINDS[self.kind.active])

    def _name(self) -> None:
        names = self.directions.names
        for k, slider in enumerate(self.sliders):
            slider.visible = k < len(names)
            slider.title = names[k] if k < len(names) else ""

    def _change_kind(self) -> None:
        self._name()
        self.view.take(self.view.base, self.view.name)

    def begin(self, base: Tensor) -> None:
        """Put all sliders to 0."""
        for slider in self.sliders:
            slider.value = 0

    def moved(self, base: Tensor) -> Tensor:
        """Latents (d,) where the sliders are."""
        found = self.directions
        steps = torch.tensor([float(slider.value) for slider in self.sliders[: len(found)]])
        return base + (steps * found.deviations) @ found.vectors


class BitHands:
    """A switch for each bit."""

    def __init__(self, view: LatentsView):
        self.view, subject = view, view.page.subject
        d = subject.latents.shape[1]
        self.code = subject.latents[0].clone()
        self.columns = max(1, round(d**0.5))
        self.seed = 0
        k = np.arange(d)
        rows = -(-d // self.columns)
        cell = max(4, min(40, 480 // max(rows, self.columns)))
        self.source = ColumnDataSource(
            {"x": k % self.columns + 0.5, "y": k // self.columns + 0.5, "color": [OFF] * d}
        )
        self.source.data["line"] = ["white"] * d
        self.figure = figure(
            width=self.columns * cell + 40,
            height=rows * cell + 30,
            x_range=(0, self.columns),
            y_range=(rows, 0),
            name="bits",
            tools="save",
            title="click a bit to switch it",
            min_border=2,
        )
        self.figure.axis.visible = False
        self.figure.grid.visible = False
        self.figure.toolbar.logo = None
        self.figure.rect(
            "x", "y", 0.84, 0.84, color=None, fill_color="color", line_color="line",
            line_width=2, source=self.source,
        )  # fmt: skip
        names = sorted({*(subject.classes or ())})
        self.shared = Select(
            title="Outline bits that images of a class share",
            value="",
            options=[("", "none"), *((name, name) for name in names)],
            width=300,
        )
        self.set = Button(label="Set the outlined bits", width=160)
        self.random = Button(label="Fair random bits", width=160)
        page = view.page
        page.on_event(self.figure, Tap, self._tap)
        page.on_change(self._paint, "value", self.shared)
        self.set.on_click(page.guarded(self._set))
        self.random.on_click(page.guarded(self._random))
        self.shared.visible = self.set.visible = bool(names)
        self.layout = column(self.figure, self.shared, beside(self.set, self.random))

    def _marked(self) -> Tensor:
        if not self.shared.value:
            return torch.zeros_like(self.code)
        return self.view.page.subject.shared_bits(self.shared.value)

    def _paint(self) -> None:
        marked = self._marked()
        self.source.data = {
            **self.source.data,
            "color": [ON if bit > 0 else OFF for bit in self.code.tolist()],
            "line": ["#d9480f" if bit else "white" for bit in marked.tolist()],
        }

    def _tap(self, event: Tap) -> None:
        x, y = int(event.x // 1), int(event.y // 1)
        k = y * self.columns + x
        if 0 <= x < self.columns and 0 <= k < len(self.code):
            self.code[k] = -self.code[k]
            self._changed()

    def _set(self) -> None:
        marked = self._marked()
        self.code = torch.where(marked != 0, marked, self.code)
        self._changed()

    def _random(self) -> None:
        self.seed += 1
        self.view.take(self.view.page.subject.fair_bits(self.seed), f"fair bits {self.seed}")

    def _changed(self) -> None:
        self._paint()
        self.view._decode()

    def begin(self, base: Tensor) -> None:
        """Take the base's bits."""
        self.code = base.clone()
        self._paint()

    def moved(self, base: Tensor) -> Tensor:
        """The code (d,) of the switches."""
        return self.code
