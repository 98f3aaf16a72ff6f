"""Show what each layer of a Ladder VAE holds: `python -m fastlatent.layers RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fastlatent import plots
from fastlatent.commands.console import command, parse
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.inference.layers import draw_row
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say, track
from fastlatent.models.capabilities import Layered
from fastlatent.noise import Noise

DESCRIPTION = """Show what each layer of a Ladder VAE holds: one picture for each layer.

All images in a row share one draw of the layers above. Each image has its own draw of the layer
itself. The layers below are at the mean of their prior.

Examples:
  python -m fastlatent.layers runs/lvae-digits
  python -m fastlatent.layers runs/lvae-static-mnist-3 --images 8 --layers 1 2 --pixels sample"""


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    images: int = 12
    """Images in a row, and rows of a picture."""
    layers: tuple[int, ...] = ()
    """Layers to show, counted from 0, the one nearest the image; default: all."""
    pixels: Literal["mean", "sample"] = "mean"
    """Show the mean of the likelihood, or sample pixels from it, as published."""
    folder: Path | None = None
    """Folder for the pictures layer-0.png and so on; default: images in the run folder."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and draw the pictures."""
    options = parse(Options, argv, "layers", DESCRIPTION, renamed={"--n": "--images"})
    trained = Trained(options)
    model = trained.model
    if not isinstance(model, Layered):
        family = trained.config.model.family
        raise UsageError(f"layers needs a Ladder VAE; {options.run} holds a model of {family}")
    count = len(model.layer_shapes)
    chosen = tuple(dict.fromkeys(options.layers)) or tuple(range(count))
    if not 0 <= min(chosen) <= max(chosen) < count:
        listed = " ".join(map(str, options.layers))
        raise UsageError(f"--layers must lie in 0 to {count - 1}; got {listed}")
    plots.check_count(options.images**2)
    folder = trained.folder.images if options.folder is None else options.folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)

    for layer in chosen:
        rows = track(range(options.images), f"layer {layer}", options.images, unit="row")
        with evaluating(model):
            images = torch.cat(
                [
                    draw_row(model, layer, options.images, Noise(trained.seed, row), options.pixels)
                    for row in rows
                ]
            )
        channels, height, width = model.layer_shapes[layer]
        caption = (
            f"each image draws layer {layer} of {count} anew ({channels} x {height} x {width} "
            "latents); a row shares the layers above"
        )
        picture = plots.grid(images, options.images, caption)
        say(f"layer {layer}: {trained.draw(picture, folder / f'layer-{layer}.png')}")


if __name__ == "__main__":
    sys.exit(main())
