"""Draw new images from a trained model: `python -m fastlatent.sample RUN`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor

from fastlatent import plots
from fastlatent.arguments import RunOptions, Trained
from fastlatent.console import command, parse
from fastlatent.gallery import NAMES
from fastlatent.latents import SAMPLINGS, Repair, Sampling, check_method, decode, draw
from fastlatent.noise import generator
from fastlatent.priors import BernoulliCopula
from fastlatent.progress import say, track
from fastlatent.quality import compare_samplers

DESCRIPTION = """Draw new images from a trained model.
- bits, --method copula: codes with the pair moments of the training codes
- bits, --method random: fair coin flips, to see what the copula is worth
- Gaussian latents, --method prior: from N(0, I), or layer by layer from what a Ladder VAE learned

Examples:
  python -m fastlatent.sample runs/lbae-digits --n 100 --out samples.png
  python -m fastlatent.sample runs/lbae-digits --method random --n 1000 --folder single"""

SHOWN = 400  # samples in the picture, at most
# Latents drawn at a time, and numbers in them; not --batch, so that the same are drawn whatever
# it is.
PART = 1 << 14
PART_NUMBERS = 1 << 26


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    n: int = 64
    """How many images to draw."""
    method: Sampling | None = None
    """How to draw the latents; default: copula for bits, prior for Gaussian latents."""
    repair: Repair = "clip"
    """What gives way where the moments of the codes fit no copula."""
    out: Path | None = None
    """Picture to write, a PNG; default: images/samples-METHOD.png in the run folder."""
    folder: Path | None = None
    """Also write each image as a PNG of its own into this folder."""
    quality: bool = True
    """Measure how close samples come to training codes and test images (bits)."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample."""
    options = parse(Options, argv, "sample", DESCRIPTION)
    trained = Trained(options)
    choices = SAMPLINGS[trained.model.latent_kind]
    method = options.method or choices[0]
    check_method("sampling", method, choices, trained.model)
    copula = trained.copula(options.repair) if method == "copula" else None

    parts = latents_in_parts(trained, method, options.n, copula)
    first = next(parts)
    shown = first[:SHOWN]
    picture = plots.samples(
        decode(trained.model, shown, trained.batch), f"samples: {NAMES[method]}"
    )
    path = plots.save(picture, trained.place(options.out, f"samples-{method}"))
    some = "" if len(shown) == options.n else f", the first {len(shown)} of them"
    say(f"{options.n} samples{some}: {path}")

    if options.folder is not None:
        batches = (batch for part in chain([first], parts) for batch in part.split(trained.batch))
        done = 0
        for batch in track(batches, "writing", -(-options.n // trained.batch)):
            plots.save_each(decode(trained.model, batch, trained.batch), options.folder, done)
            done += len(batch)
        say(f"single images: {options.folder}")
    if options.quality and trained.model.latent_kind == "bits":
        report_quality(trained, options.repair)


def latents_in_parts(
    trained: Trained, method: Sampling, n: int, copula: BernoulliCopula | None
) -> Iterator[Tensor]:  # each (k, d)
    """n latents in parts, so that memory does not bound n."""
    stream = generator(trained.seed, 0, f"samples/{method}")
    part = max(1, min(PART, PART_NUMBERS // trained.model.latent_dim))
    for start in range(0, n, part):
        yield draw(trained.model, method, min(part, n - start), stream, copula)


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
    quality = compare_samplers(trained.model, trained.codes, copula, train, test, trained.seed)
    say("\n".join(quality.lines()))


if __name__ == "__main__":
    sys.exit(main())
