"""Draw new images from a trained model, or take real ones: `python -m fastlatent.sample RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from fastlatent import plots
from fastlatent.commands.console import OUTSIDE_TRAINING, command, parse
from fastlatent.commands.real_images import write_images
from fastlatent.commands.single_images import SingleImages
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import DataConfig
from fastlatent.data.config import KINDS
from fastlatent.inference.gallery import NAMES
from fastlatent.inference.latents import (
    Repair,
    Sampling,
    decode,
)
from fastlatent.inference.quality import compare_samplers
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say, track

DESCRIPTION = """Draw new images from a trained model.

Methods for bits:
- copula: codes with the pair moments of the training codes
- random: fair coin flips, for comparison

Methods for real latents:
- prior: the model's own prior. That is N(0, I) for a VAE or BiGAN. A Ladder VAE draws layer by
  layer, LaDDer from its learned prior. GLO draws from a Gaussian fitted to its latents, in style
  seed evenly from the sphere.
- normal, gmm, vamp, hierarchical, ladder: the priors that fit_prior has fitted to the run

A data set in place of a run writes its first images, the same number of each class, as PNGs into
--folder.

Single images are raw 8-bit pixels, as programs that measure a Frechet distance read them.

Examples:
  python -m fastlatent.sample runs/lbae-digits --images 100 --out samples.png
  python -m fastlatent.sample runs/lbae-digits --method random --images 1000 --folder single
  python -m fastlatent.sample mnist --root ~/data --images 500 --folder real"""

SHOWN = 400  # samples in the picture, at most

# Settings of a data set by the options of this command.
OPTIONS = {
    **OUTSIDE_TRAINING,
    "data.name": "the data set",
    "data.size": "--size",
    "data.classes": "--classes",
}


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    images: int = 64
    """Images to draw."""
    method: Sampling | None = None
    """How to draw the latents; default: copula for bits, prior for real latents. normal, gmm, vamp,
    hierarchical and ladder need fit_prior first."""
    noise: bool = True
    """Add the noise of p(z | t) to draws of a hierarchical prior. Pictures without it are smoother,
    but they are no draws of the prior."""
    repair: Repair = "clip"
    """How to repair moments of the codes that no copula has."""
    out: Path | None = None
    """Picture to write, a PNG; default: images/samples-METHOD.png in the run folder."""
    folder: Path | None = None
    """Also write each image as a PNG into this folder. Images that sample wrote there before are
    replaced."""
    quality: bool = True
    """Measure how close samples come to training codes and test images (bits)."""
    split: Literal["test", "train"] = "test"
    """Split of a data set that is named in place of a run."""
    classes: tuple[int, ...] = ()
    """Labels of the data set's images to write; default: all."""
    size: int | None = None
    """Side of the data set's images when written; default: their own."""


@command(options=OPTIONS)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample."""
    options = parse(Options, argv, "sample", DESCRIPTION, renamed={"--n": "--images"})
    data = data_set(options)
    if data is not None:
        config, folder = data
        write_images(config, options.split, options.images, folder, options.batch)
        return
    trained = Trained(options)
    method = trained.sampling(options.method)
    parts = trained.draw_latents(options.images, method, noise=options.noise, repair=options.repair)
    singles = None if options.folder is None else SingleImages(options.folder, "sample")
    first = next(parts)
    shown = first[:SHOWN]
    picture = plots.samples(
        decode(trained.model, shown, trained.batch), f"samples: {NAMES[method]}"
    )
    path = trained.draw(picture, trained.place(options.out, f"samples-{method}"))
    some = "" if len(shown) == options.images else f", the first {len(shown)} of them"
    say(f"{options.images} samples{some}: {path}")

    if singles is not None:
        batches = (batch for part in chain([first], parts) for batch in part.split(trained.batch))
        for batch in track(batches, "writing", -(-options.images // trained.batch)):
            singles.add(decode(trained.model, batch, trained.batch))
        singles.say()
    if options.quality and trained.model.latent_kind == "bits":
        report_quality(trained, options.repair)


def data_set(options: Options) -> tuple[DataConfig, Path] | None:
    """The data set that stands in place of a run, and where to write; None for anything else.

    Raises UsageError for options that do not go with what it is.
    """
    name = str(options.run)
    of_data = {"classes": options.classes, "size": options.size, "split": options.split != "test"}
    kind = name.partition(":")[0]
    if (options.run / "config.json").is_file() or kind not in KINDS:
        given = [f"--{option}" for option, value in of_data.items() if value]
        if given:
            raise UsageError(
                f"{given[0]} needs a data set in place of a run, such as {', '.join(KINDS)}; "
                f"got {name}"
            )
        return None
    if options.folder is None:
        raise UsageError(f"images of the data set {name} need a place: give --folder")
    for option, value in (("--out", options.out), ("--method", options.method)):
        if value is not None:
            raise UsageError(f"{option} does not go with a data set; it needs a run")
    root = None if options.root is None else options.root.expanduser()
    try:
        return DataConfig(name, root, options.size, options.classes), options.folder
    except ValueError as error:
        raise UsageError(str(error)) from None


def report_quality(trained: Trained, repair: Repair) -> None:
    """Print the table of both samplers, where the data set is at hand and bits have pairs."""
    if trained.model.latent_dim == 1:
        say("not measured: one bit has no pair moments")
        return
    try:
        train, test = trained.split("train"), trained.split("test")
    except (OSError, ValueError) as error:
        say(f"not measured, because the data set cannot be read: {error}")
        return
    copula = trained.copula(repair)
    assert copula is not None
    quality = compare_samplers(trained.model, trained.codes, copula, train, test, trained.seed)
    say("\n".join(quality.lines()))


if __name__ == "__main__":
    sys.exit(main())
