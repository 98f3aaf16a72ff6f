"""Walk between images through the latent space: `python -m fastlatent.interpolate RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from fastlatent import plots
from fastlatent.arguments import RunOptions, Trained
from fastlatent.console import UsageError, command, parse
from fastlatent.gallery import pick_pairs
from fastlatent.latents import (
    WALKINGS,
    Direction,
    Repair,
    Walk,
    Walking,
    check_method,
    decode,
    unit_images,
    walk,
)
from fastlatent.passes import evaluating
from fastlatent.priors import edit_attribute
from fastlatent.progress import say

DESCRIPTION = """Walk from one image to another through the latent space, a walk in each row.
- bits, --method copula: along the arcs of the copula fitted to the training codes
- Gaussian latents, --method spherical or linear: around the origin, or straight
- bits, --set-attribute: from an image to the same with an attribute or class set

Examples:
  python -m fastlatent.interpolate runs/lbae-digits --n 8 --steps 12
  python -m fastlatent.interpolate runs/lbae-digits --split test --from 0 7 --to 12 3
  python -m fastlatent.interpolate runs/lbae-digits --set-attribute 4"""


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    method: Walking | None = None
    """How to walk; default: copula for bits, spherical for Gaussian latents."""
    n: int = 8
    """How many walks, where --from and --to are not given."""
    steps: int = 10
    """Images on a walk, both ends among them."""
    split: Literal["train", "test"] = "train"
    """Whose images are walked between."""
    start: Annotated[tuple[int, ...], tyro.conf.arg(name="from")] = ()
    """Where the walks begin: indices of images in the split; default: drawn by the seed."""
    end: Annotated[tuple[int, ...], tyro.conf.arg(name="to")] = ()
    """Where they end: as many indices."""
    set_attribute: str | None = None
    """Instead of --to: set this attribute or class, given by its number or its name (bits)."""
    reference: Literal["population", "zero"] = "population"
    """With --set-attribute: set the bits that differ under the attribute from what they usually
    are, or (zero, as published) all that are biased under it."""
    direction: Direction = "margin"
    """How to turn a code into a direction: margin keeps every bit, split is as published."""
    repair: Repair = "clip"
    """What gives way where the moments of the codes fit no copula."""
    out: Path | None = None
    """Picture to write, a PNG; default: images/interpolation-METHOD.png in the run folder, with
    --set-attribute images/attribute-NUMBER.png."""
    folder: Path | None = None
    """Also write each image of the walks as a PNG of its own into this folder, walk by walk."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and interpolate."""
    options = parse(Options, argv, "interpolate", DESCRIPTION)
    trained = Trained(options)
    choices = WALKINGS[trained.model.latent_kind]
    method = options.method or choices[0]
    if options.set_attribute is not None and trained.model.latent_kind != "bits":
        raise UsageError("--set-attribute needs a model whose latents are bits")
    check_method("interpolation", method, choices, trained.model)
    split = trained.split(options.split)
    starts, ends = chosen_pairs(options, len(split), trained.seed)
    plots.check_count(len(starts) * options.steps)
    copula = trained.copula(options.repair)

    first = unit_images(split, starts, trained.device)
    start = encode(trained, first)
    if options.set_attribute is None:
        last = unit_images(split, ends, trained.device)
        end = encode(trained, last)
        name, caption = f"interpolation-{method}", f"interpolation ({method})"
    else:
        k, label = find_label(options.set_attribute, trained.data.label_names)
        last, end = None, edit_attribute(start, trained.codes, k, options.reference)
        name, caption = f"attribute-{k}", f"from an image to the same with {label} set"
    path = walk(trained.model, method, start, end, options.steps, copula, options.direction)
    images = decode(trained.model, path.latents.flatten(0, 1), trained.batch)
    picture = plots.walks(first, images.unflatten(0, (-1, options.steps)), last, caption)
    saved = plots.save(picture, trained.place(options.out, name))

    describe(path, options, starts, ends)
    say(f"picture: {saved}")
    if options.folder is not None:
        plots.save_each(images, options.folder)
        say(f"single images: {options.folder}")


def encode(trained: Trained, images: Tensor) -> Tensor:
    """Latents of images, (k, c, h, w) -> (k, d)."""
    with evaluating(trained.model):
        return trained.model.encode(images)


def chosen_pairs(options: Options, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (k,) of the first and the last images, out of `count`."""
    for name, chosen in (("from", options.start), ("to", options.end)):
        if chosen and not 0 <= min(chosen) <= max(chosen) < count:
            raise UsageError(
                f"--{name} must lie in 0 to {count - 1}, the {options.split} images; got "
                + " ".join(map(str, chosen))
            )
    if options.set_attribute is not None and options.end:
        raise UsageError("--to does not go with --set-attribute, which makes its own ends")
    start, end = pick_pairs(count, options.n, seed)
    if options.start:
        start = torch.tensor(options.start)
    if not len(start):
        raise UsageError(f"the {options.split} split has one image; two to walk between are needed")
    if options.set_attribute is not None:
        return start, start
    if bool(options.start) != bool(options.end) or len(options.start) != len(options.end):
        raise UsageError("--from and --to go together and need as many indices each")
    return start, torch.tensor(options.end) if options.end else end


def find_label(wanted: str, names: tuple[str, ...] | None) -> tuple[int, str]:
    """Number and name of an attribute or class given by either."""
    if names is None:
        raise UsageError("--set-attribute needs labels, and this data set has none")
    if wanted in names:
        return names.index(wanted), wanted
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted), names[int(wanted)]
    raise UsageError(
        f"--set-attribute must be a number from 0 to {len(names) - 1} or one of "
        f"{', '.join(names)}; got {wanted!r}"
    )


def describe(path: Walk, options: Options, starts: Tensor, ends: Tensor) -> None:
    """Say for each row which images it joins and, of bits, how far apart they are."""
    for row, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        goal = f"with {options.set_attribute} set" if options.set_attribute else f"to {b}"
        line = f"  row {row + 1}: {options.split} image {a} {goal}"
        if path.hamming is not None and path.wrong_bits is not None:
            missed = int(path.wrong_bits[row].sum())
            line += f", {int(path.hamming[row, 0, 1])} bits apart"
            line += f" ({missed} bits of the ends missed)" if missed else ""
        say(line)


if __name__ == "__main__":
    sys.exit(main())
