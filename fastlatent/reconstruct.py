"""Reconstruct images and measure the loss: `python -m fastlatent.reconstruct RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from fastlatent import plots
from fastlatent.commands.console import command, parse
from fastlatent.commands.single_images import SingleImages
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import Split
from fastlatent.inference.gallery import reconstruction_picture
from fastlatent.inference.passes import evaluating, measure_loss
from fastlatent.jobs.progress import say, track
from fastlatent.models.capabilities import LearnsLatents, corrupted, reconstruction_of
from fastlatent.noise import Noise

DESCRIPTION = """Show images next to their reconstructions and measure the loss over all images.

Examples:
  python -m fastlatent.reconstruct runs/lbae-digits
  python -m fastlatent.reconstruct runs/lbae-digits --split train --weights best --images 16
  python -m fastlatent.reconstruct runs/glo-digits --data-id 3 141 59"""


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    images: int = 32
    """Images to show, evenly spread over the split."""
    split: Literal["test", "train"] = "test"
    """Split to reconstruct."""
    data_id: tuple[str, ...] = ()
    """Reconstruct only these images: numbers from 0, or the ids that an h5 file gives its images.
    """
    out: Path | None = None
    """Picture to write, a PNG; default: images/reconstructions.png in the run folder, or
    images/reconstructions-train.png for --split train."""
    folder: Path | None = None
    """Also write each reconstruction as a PNG into this folder."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and reconstruct."""
    options = parse(Options, argv, "reconstruct", DESCRIPTION, renamed={"--n": "--images"})
    singles = None if options.folder is None else SingleImages(options.folder, "reconstruct")
    trained = Trained(options)
    split = trained.split(options.split)
    chosen = split.find(options.data_id) if options.data_id else None
    index = split.spread(options.images) if chosen is None else chosen
    plots.check_count(2 * len(index))
    losses = measure_loss(trained.model, split, trained.batch, trained.seed, index=chosen)
    loss = losses.pop("loss")
    unit = trained.model.loss_unit
    count = len(split) if chosen is None else len(chosen)
    how = found_how(trained, split, index)
    say(f"{options.split} loss {loss:.4f} {unit}, mean over {count:,} images{how}")
    for name, value in losses.items():
        say(f"  {name.replace('_', ' ')} {value:.4f}")

    picture = reconstruction_picture(
        trained.model, split, index, trained.seed, f", {loss:.2f} {unit}"
    )
    name = "reconstructions" if options.split == "test" else "reconstructions-train"
    say(f"picture: {trained.draw(picture, trained.place(options.out, name))}")
    if singles is not None:
        write_all(trained, options, chosen, singles)


def found_how(trained: Trained, split: Split, index: Tensor) -> str:
    """What to add where latents of images are not encoded."""
    model = trained.model
    if not isinstance(model, LearnsLatents):
        return ""
    return f", {model.search if model.learned_latents(split, index) is None else 'learned latents'}"


def write_all(
    trained: Trained, options: Options, chosen: Tensor | None, singles: SingleImages
) -> None:
    """One file for each reconstruction of the split, or of what is chosen, in order from 0."""
    split = trained.split(options.split)
    batches = split.batches(trained.batch, trained.device, order=chosen)
    steps = -(-(len(split) if chosen is None else len(chosen)) // trained.batch)
    with evaluating(trained.model):
        for batch in track(batches, "writing", steps):
            noise = Noise(trained.seed, 0).of_images(batch.index)
            shown = corrupted(trained.model, batch.images, noise)
            singles.add(reconstruction_of(trained.model, shown, split, batch.index))
    singles.say()


if __name__ == "__main__":
    sys.exit(main())
