"""Samples by method, temperature and seed."""

from typing import TYPE_CHECKING

from bokeh.events import Tap
from bokeh.layouts import column
from bokeh.models import Button, Div, RadioButtonGroup, Select, Slider, Spinner

from fastlatent.commands.exploration.parts import STYLE, Raster, beside, shell
from fastlatent.inference.gallery import NAMES

if TYPE_CHECKING:
    from fastlatent.commands.exploration.page import Page

SIDE = 8  # samples in a row, and rows


class SamplesView:
    """A grid of samples; a click takes one to the view of latents or to a handle of the map."""

    def __init__(self, page: "Page"):
        self.page = page
        subject = page.subject
        options = [(method, f"{method}: {NAMES[method]}") for method in subject.methods]
        self.method = Select(title="Method", value=subject.methods[0], options=options, width=300)
        self.temperature = Slider(
            title="Temperature", start=0, end=2, step=0.05, value=1, width=300
        )
        self.temperature.visible = not subject.bits
        self.seed = Spinner(title="Seed", low=0, step=1, value=subject.run.seed, width=120)
        self.anew = Button(label="Draw anew", width=120)
        self.command = Div(styles=STYLE, width=300)
        self.raster = Raster(SIDE, SIDE, name="samples")
        hint = Div(text="A click takes a sample to", styles=STYLE, width=300)
        handles = ["A on the map", "B on the map"] if len(subject.principal) > 1 else []
        self.goal = RadioButtonGroup(labels=["Latents", *handles], active=0)

        self.draw = page.soon(self._draw)
        page.on_change(self.draw, "value", self.method, self.temperature, self.seed)
        self.anew.on_click(page.guarded(self._next_seed))
        page.on_event(self.raster.figure, Tap, self._tap)
        controls = column(
            self.method, self.temperature, self.seed, self.anew, hint, self.goal, self.command
        )
        self.layout = beside(controls, self.raster.figure)
        page.guarded(self._draw)()

    def _next_seed(self) -> None:
        self.seed.value = (self.seed.value or 0) + 1

    def _draw(self) -> None:
        subject, method, seed = self.page.subject, self.method.value, int(self.seed.value or 0)
        temperature = float(self.temperature.value)
        self.latents = subject.draw(SIDE**2, method, seed, temperature)
        self.raster.show(subject.pictures(self.latents))
        again = subject.command("sample", "--method", method, "--seed", str(seed))
        self.command.text = (
            f"The same as a file:<br>{shell(again)}"
            if temperature == 1
            else "The command sample draws at temperature 1 only."
        )

    def _tap(self, event: Tap) -> None:
        k = self.raster.place(event.x, event.y)
        if k is None or k >= len(self.latents):
            return
        goal = self.goal.labels[self.goal.active]
        if goal == "Latents":
            name = f"sample {k + 1} of seed {int(self.seed.value or 0)}, {self.method.value}"
            self.page.latents.take(self.latents[k], name)
            self.page.open("Latents")
        else:
            self.page.views["Map"].put(goal[0], self.latents[k])
            self.page.open("Map")
