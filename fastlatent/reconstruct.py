"""Reconstruct images and measure the loss: `python -m fastlatent.reconstruct RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastlatent import plots
from fastlatent.arguments import RunOptions, Trained, first_images
from fastlatent.console import command, parse
from fastlatent.gallery import reconstruction_picture
from fastlatent.noise import Noise
from fastlatent.passes import evaluating, measure_loss
from fastlatent.progress import say, track

DESCRIPTION = """Show images next to their reconstructions and measure the loss over all images.

Examples:
  python -m fastlatent.reconstruct runs/lbae-digits
  python -m fastlatent.reconstruct runs/lbae-digits --split train --weights best --n 16"""


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    n: int = 32
    """How many images to show, the first of the split."""
    split: Literal["test", "train"] = "test"
    """Which images to look at."""
    out: Path | None = None
    """Picture to write, a PNG; default: images/reconstructions.png in the run folder, with -train
    for the training split."""
    folder: Path | None = None
    """Also write every reconstruction of the split as a PNG of its own into this folder."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and reconstruct."""
    options = parse(Options, argv, "reconstruct", DESCRIPTION)
    trained = Trained(options)
    split = trained.split(options.split)
    index = first_images(split, options.n)
    plots.check_count(2 * len(index))
    losses = measure_loss(trained.model, split, trained.batch, trained.seed)
    loss = losses.pop("loss")
    unit = trained.model.loss_unit
    say(f"{options.split} loss {loss:.4f} {unit}, mean over {len(split):,} images")
    for name, value in losses.items():
        say(f"  {name.replace('_', ' ')} {value:.4f}")

    picture = reconstruction_picture(
        trained.model, split, index, trained.seed, f", {loss:.2f} {unit}"
    )
    name = "reconstructions" if options.split == "test" else "reconstructions-train"
    say(f"picture: {plots.save(picture, trained.place(options.out, name))}")
    if options.folder is not None:
        write_all(trained, options)


def write_all(trained: Trained, options: Options) -> None:
    """One file for each reconstruction of the split, numbered like its images."""
    split = trained.split(options.split)
    batches = split.batches(trained.batch, trained.device)
    steps = -(-len(split) // trained.batch)
    with evaluating(trained.model):
        for number, batch in enumerate(track(batches, "writing", steps)):
            shown = trained.model.corrupt(batch.images, Noise(trained.seed, number))
            images = trained.model.reconstruction_of(shown, split, batch.index)
            plots.save_each(images, options.folder, int(batch.index[0]))
    say(f"single images: {options.folder}")


if __name__ == "__main__":
    sys.exit(main())
