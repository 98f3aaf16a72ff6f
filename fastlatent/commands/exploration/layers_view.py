"""What a layer of latents holds: rows that share the layers above it."""

from typing import TYPE_CHECKING

import torch
from bokeh.layouts import column
from bokeh.models import Button, Div, Select, Spinner

from fastlatent import plots
from fastlatent.commands.exploration.parts import STYLE, Raster, beside, shell
from fastlatent.inference.layers import draw_row
from fastlatent.inference.passes import evaluating
from fastlatent.models.capabilities import Layered
from fastlatent.noise import Noise

if TYPE_CHECKING:
    from fastlatent.commands.exploration.page import Page

SIDE = 8  # images in a row, and rows


class LayersView:
    """A grid: a row holds the layers above the chosen one, each image draws that one anew."""

    def __init__(self, page: "Page", model: Layered):
        self.page, self.model = page, model
        shapes = [" x ".join(map(str, shape)) for shape in model.layer_shapes]
        last = len(shapes) - 1
        where = {0: ", the finest", last: ", the coarsest"} if last else {}
        options = [
            (str(k), f"layer {k}{where.get(k, '')}: {shape}") for k, shape in enumerate(shapes)
        ]
        self.layer = Select(title="Draw anew", value=str(last), options=options, width=300)
        self.seed = Spinner(title="Seed", low=0, step=1, value=page.subject.run.seed, width=120)
        self.anew = Button(label="Draw anew", width=120)
        self.command = Div(styles=STYLE, width=300)
        self.raster = Raster(SIDE, SIDE, name="layers")
        hint = Div(
            text="The images of a row share one draw of the layers above. Each draws this layer "
            "anew; the layers below are at the mean of their prior.",
            styles=STYLE,
            width=300,
        )
        page.on_change(page.soon(self._draw), "value", self.layer, self.seed)
        self.anew.on_click(page.guarded(self._next_seed))
        controls = column(self.layer, self.seed, self.anew, hint, self.command)
        self.layout = beside(controls, self.raster.figure)
        page.guarded(self._draw)()

    def _next_seed(self) -> None:
        self.seed.value = (self.seed.value or 0) + 1

    def _draw(self) -> None:
        layer, seed = int(self.layer.value), int(self.seed.value or 0)
        with evaluating(self.page.subject.run.model):
            rows = [draw_row(self.model, layer, SIDE, Noise(seed, row)) for row in range(SIDE)]
        self.raster.show(plots.to_bytes(torch.cat(rows).cpu()))
        words = ("--layers", str(layer), "--images", str(SIDE), "--seed", str(seed))
        again = self.page.subject.command("layers", *words)
        self.command.text = f"The same as a file:<br>{shell(again)}"
