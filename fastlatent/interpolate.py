"""Walk through the latent space: `python -m fastlatent.interpolate RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import tyro
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments.ends import EndOptions, Joined, first_images_of, join
from fastlatent.commands.experiments.geodesic_walks import walk_shorter
from fastlatent.commands.experiments.likely_walks import walk_likely
from fastlatent.commands.experiments.shorter import CurveOptions
from fastlatent.commands.single_images import SingleImages
from fastlatent.commands.trained import Trained
from fastlatent.geometry.solver import Method
from fastlatent.inference.latents import Repair, check_method, decode
from fastlatent.inference.walking import Direction, Walk, Walking, walk, walkings
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.priors import edit_attribute
from fastlatent.runs.likely import LikelyOptions

DESCRIPTION = """Interpolate between images through the latent space, one interpolation in each row.

Methods for bits:
- copula: along the arcs of the copula fitted to the training codes
- --set-attribute, without a method: from an image to the same image with an attribute or class set

Methods for real latents:
- linear (lerp) and spherical (slerp)
- geodesic: a straight line, and a shorter curve under the metric that the decoder gives the
  latents, both in equal steps. Lengths, search and cosines of images go into a CSV and a JSON file
  beside the picture, curves into an npz file. --tolerance, --max-iterations, --chunk, --feature and
  --vgg belong to it.
- likelihood: a straight line, and a path that is short, evenly stepped and likely under a prior.
  It also draws the curves of the search, and over two latents the paths on the density.

Examples:
  python -m fastlatent.interpolate runs/lbae-digits --pairs 8 --steps 12
  python -m fastlatent.interpolate runs/lbae-digits --split test --from 0 7 --to 12 3
  python -m fastlatent.interpolate runs/lbae-digits --set-attribute 4
  python -m fastlatent.interpolate runs/vae-mnist --method geodesic --from -1 --to 1
  python -m fastlatent.interpolate runs/vae-mnist --method likelihood --prior gmm"""

LIKELY = tuple(option.name for option in fields(LikelyOptions))
SEARCH = tuple(CurveOptions.__annotations__)
GEODESIC = "solver", "spans", "points", *SEARCH


@dataclass(frozen=True)
class Options(CurveOptions, EndOptions):
    """The command line."""

    method: Walking | None = None
    """Path between two images; default: copula for bits, spherical for real latents, linear for
    GLO's latents in a ball."""
    set_attribute: str | None = None
    """Set this attribute or class, by number or name, in place of --to (bits)."""
    reference: Literal["population", "zero"] = "population"
    """With --set-attribute: population sets the bits that differ under the attribute from their
    usual value; zero, as published, sets all bits that are biased under it."""
    direction: Direction = "margin"
    """How a code becomes a direction: margin keeps every bit; split is the published rule, which
    keeps them where the moments needed no repair."""
    repair: Repair = "clip"
    """How to repair moments of the codes that no copula has."""
    solver: Method | None = None
    """With --method geodesic: how curves are shortened; default: lbfgs. original: the published
    procedure."""
    spans: tuple[int, ...] | None = None
    """With --method geodesic: polynomial pieces of the curves, level by level; default: 2 8 16."""
    points: int | None = None
    """With --method geodesic: grid points of the original program's length; default: 20."""
    likely: tyro.conf.OmitArgPrefixes[LikelyOptions] = field(default_factory=LikelyOptions)
    """How --method likelihood searches; no other method takes these."""
    out: Path | None = None
    """Picture to write, a PNG; default: interpolation-METHOD.png in images of the run folder, with
    --feature interpolation-geodesic-FEATURE.png, with --set-attribute attribute-NUMBER.png. Methods
    geodesic and likelihood write further files beside it."""
    folder: Path | None = None
    """Also write each image as a PNG into this folder, one interpolation after the other."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and interpolate."""
    options = parse(Options, argv, "interpolate", DESCRIPTION, renamed={"--n": "--pairs"})
    trained = Trained(options)
    choices = walkings(trained.model)
    method = options.method or choices[0]
    if options.set_attribute is not None:
        if trained.model.latent_kind != "bits":
            raise UsageError("--set-attribute needs a model whose latents are bits")
        if options.end:
            raise UsageError("--to does not go with --set-attribute, which makes its own ends")
    standard = LikelyOptions()
    given = {
        "geodesic": [name for name in GEODESIC if getattr(options, name) is not None],
        "likelihood": [k for k in LIKELY if getattr(options.likely, k) != getattr(standard, k)],
    }
    for needed, names in given.items():
        if method != needed and names:
            raise UsageError(f"--{names[0].replace('_', '-')} needs --method {needed}")
    check_method("interpolation", method, choices, trained.model)
    set_one = options.set_attribute is not None
    singles = None if options.folder is None else SingleImages(options.folder, "interpolate")
    joined = first_images_of(trained, options) if set_one else join(trained, options)
    plots.check_count(len(joined.start) * options.steps)
    if method == "geodesic":
        searched = {name: getattr(options, name) for name in GEODESIC}
        images = walk_shorter(trained, joined, options.steps, **searched, out=options.out)
        images = images.flatten(0, 2)
    elif method == "likelihood":
        images = walk_likely(trained, joined, options.steps, options.likely, options.out)
        images = images.flatten(0, 2)
    else:
        images = walk_plainly(trained, options, joined, method)
    if singles is not None:
        singles.add(images)
        singles.say()


def walk_plainly(trained: Trained, options: Options, joined: Joined, method: Walking) -> Tensor:
    """The images of walks that need no search, a row of the picture for each."""
    copula = trained.copula(options.repair)
    end, name, caption = joined.end, f"interpolation-{method}", f"interpolation ({method})"
    if options.set_attribute is not None:
        k, label = find_label(options.set_attribute, trained.data.label_names)
        end = edit_attribute(joined.start, trained.codes, k, options.reference)
        name, caption = f"attribute-{k}", f"from an image to the same with {label} set"
    path = walk(trained.model, method, joined.start, end, options.steps, copula, options.direction)
    images = decode(trained.model, path.latents.flatten(0, 1), trained.batch)
    shown = images.unflatten(0, (-1, options.steps))
    picture = plots.walks(joined.first, shown, joined.last, caption)
    saved = trained.draw(picture, trained.place(options.out, name))

    wanted = "" if options.set_attribute is None else f" with {options.set_attribute} set"
    describe(path, [name + wanted for name in joined.names])
    say(f"picture: {saved}")
    return images


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


def describe(path: Walk, names: Sequence[str]) -> None:
    """Say for each row what it joins and, of bits, how far apart the ends are."""
    for row, name in enumerate(names):
        line = f"  row {row + 1}: {name}"
        if path.hamming is not None and path.wrong_bits is not None:
            missed = int(path.wrong_bits[row].sum())
            line += f", {int(path.hamming[row, 0, 1])} bits apart"
            line += f" ({missed} bits of the ends missed)" if missed else ""
        say(line)


if __name__ == "__main__":
    sys.exit(main())
