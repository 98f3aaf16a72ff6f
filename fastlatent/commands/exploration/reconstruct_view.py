"""An image of the user's own: encoded, decoded again, and taken to the other views."""

import base64
import html
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.layouts import column
from bokeh.models import Button, Checkbox, Div, FileInput
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.exploration.later import Later
from fastlatent.commands.exploration.parts import STYLE, Raster, beside
from fastlatent.commands.exploration.upload import fitted

if TYPE_CHECKING:
    from fastlatent.commands.exploration.page import Page

LARGE = 220  # pixels of the screen to an image


class ReconstructView:
    """A file that is chosen or dropped, as the model sees it, and its reconstruction.

    The thread of long tasks encodes it: a model without an encoder searches for seconds.
    """

    def __init__(self, page: "Page"):
        self.page = page
        self.image: Tensor | None = None  # (1, c, h, w)
        self.latents: Tensor | None = None  # (d,)
        self.name = ""
        self.file = FileInput(accept="image/*", title="Choose an image, or drop one here")
        self.invert = Checkbox(label="Invert, for dark ink on light paper", active=False)
        self.text = Div(text="No image yet.", styles=STYLE, width=460)
        self.raster = Raster(
            2, 1, LARGE, "as the model sees it, and reconstructed", name="reconstructed"
        )
        self.encoding = Later(page.subject, page.document, page.guarded)
        self.to_latents = Button(label="Take it to Latents", width=150, disabled=True)
        self.to_map = {
            name: Button(label=f"Make it {name} on the map", width=170, disabled=True)
            for name in "AB"
            if "Map" in page.views
        }
        # A name comes after its file.
        read = page.soon(self._read)
        page.on_change(read, "value", self.file)
        page.on_change(read, "active", self.invert)
        self.to_latents.on_click(page.guarded(self._take))
        for name, button in self.to_map.items():
            button.on_click(page.guarded(partial(self._place, name)))
        controls = column(self.file, self.invert, self.text)
        buttons = beside(self.to_latents, *self.to_map.values())
        self.layout = column(controls, self.raster.figure, buttons)

    def _read(self) -> None:
        try:
            data, name = base64.b64decode(self.file.value), self.file.filename
        except UnsetValueError:  # nothing is chosen yet
            return
        if data:
            self.take(data, name)

    def take(self, data: bytes, name: str) -> None:
        """Reconstruct the image in a file's bytes."""
        self._enable(False)
        self.text.text = "No image yet."
        image = fitted(data, name, self.page.subject.run.model.image_shape)
        self.name = name
        self.image = 1 - image if self.invert.active else image
        self.raster.show(plots.to_bytes(torch.cat([self.image, torch.ones_like(image)])))
        self.text.text = f"{html.escape(name)}: encoding ..."
        run, image = self.page.subject.apart, self.image

        def encoded() -> Iterator[Tensor]:
            yield run.encode(image)[0].cpu().float()

        self.encoding.start(encoded, partial(self._show, name))

    def _show(self, name: str, latents: Tensor) -> None:
        self.latents = latents
        assert self.image is not None
        decoded = self.page.subject.decoded(latents[None])
        self.raster.show(plots.to_bytes(torch.cat([self.image, decoded])))
        error = (decoded - self.image).square().mean().sqrt()
        self.text.text = (
            f"{html.escape(name)}: the two differ by {error:.3f}, "
            "the root of the mean square over pixels in 0 to 1."
        )
        self._enable(True)

    def _enable(self, there: bool) -> None:
        for button in (self.to_latents, *self.to_map.values()):
            button.disabled = not there

    def _take(self) -> None:
        if self.latents is not None:
            self.page.latents.take(self.latents, self.name)
            self.page.open("Latents")

    def _place(self, handle: str) -> None:
        if self.latents is not None:
            self.page.views["Map"].put(handle, self.latents)
            self.page.open("Map")
