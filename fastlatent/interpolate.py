"""Walk through the latent space: `python -m fastlatent.interpolate RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from fastlatent import plots
from fastlatent.arguments import RunOptions, Trained
from fastlatent.console import UsageError, command, parse
from fastlatent.experiments import pictures
from fastlatent.experiments.findings import joined_images, pair_rows, stated, write_rows
from fastlatent.experiments.shorter import (
    FEATURE_NAMES,
    Feature,
    draw_prior,
    encode,
    feature_map_of,
    file_name,
    length_notes,
    measures,
    metric_of,
    sequences,
    shorten,
)
from fastlatent.gallery import pick_pairs
from fastlatent.geometry import Metric
from fastlatent.geometry.experiment import Experiment, cosines
from fastlatent.geometry.solver import Method
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
from fastlatent.priors import edit_attribute
from fastlatent.progress import say

DESCRIPTION = """Walk from one image to another through the latent space, a walk in each row.
- bits, --method copula: along the arcs of the copula fitted to the training codes
- real latents, --method spherical or linear: around the origin, or straight
- real latents, --method geodesic: straight and along a shorter curve under the metric that the
  decoder gives the latents, in equal steps, with the lengths of both and the cosines between their
  images (numbers in a CSV beside the picture)
- bits, --set-attribute: from an image to the same with an attribute or class set

Examples:
  python -m fastlatent.interpolate runs/lbae-digits --n 8 --steps 12
  python -m fastlatent.interpolate runs/lbae-digits --split test --from 0 7 --to 12 3
  python -m fastlatent.interpolate runs/lbae-digits --set-attribute 4
  python -m fastlatent.interpolate runs/vae-mnist --method geodesic --from -1 --to 1"""

SPANS = 2, 8, 16
POINTS = 20
CORRELATED = 40  # points of a curve between which cosines are taken
DRAWN = 8  # walks whose cosines are drawn, at most
CONSTANTS = (-1.0,), (1.0,)  # latents that the original walks between

Ends = Literal["images", "prior", "constant"]


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    method: Walking | Literal["geodesic"] | None = None
    """How to walk; default: copula for bits, spherical for real latents."""
    n: int = 8
    """How many walks, where --from and --to are not given."""
    steps: int = 10
    """Images on a walk, both ends among them."""
    split: Literal["train", "test"] = "train"
    """Whose images are walked between."""
    ends: Ends | None = None
    """What to walk between (real latents): images, draws from the prior, or latents with all
    coordinates alike, which --from and --to give; default: images, or constant where --from and
    --to can be no indices."""
    start: Annotated[tuple[float, ...], tyro.conf.arg(name="from")] = ()
    """Where the walks begin: indices of images in the split, by default drawn by the seed, or
    constants, by default -1."""
    end: Annotated[tuple[float, ...], tyro.conf.arg(name="to")] = ()
    """Where they end: as many indices, or constants, by default 1."""
    set_attribute: str | None = None
    """Instead of --to: set this attribute or class, given by its number or its name (bits)."""
    reference: Literal["population", "zero"] = "population"
    """With --set-attribute: set the bits that differ under the attribute from what they usually
    are, or (zero, as published) all that are biased under it."""
    direction: Direction = "margin"
    """How to turn a code into a direction: margin keeps every bit, split is as published."""
    repair: Repair = "clip"
    """What gives way where the moments of the codes fit no copula."""
    solver: Method | None = None
    """With --method geodesic: how curves are shortened; default: lbfgs; original: the published
    procedure."""
    spans: tuple[int, ...] | None = None
    """With --method geodesic: polynomial pieces of the curves, level by level; default: 2 8 16."""
    feature: Feature | None = None
    """With --method geodesic: measure lengths between features of the images, the class
    probabilities of a logistic regression trained here or the last map of a VGG-19."""
    vgg: Path | None = None
    """With --feature vgg: file of its weights. Of a VAE it sees images with noise, 4 draws."""
    points: int | None = None
    """With --method geodesic: points of the grid on which the original program measures; default:
    20."""
    out: Path | None = None
    """Picture to write, a PNG; default: images/interpolation-METHOD.png in the run folder, with
    --feature images/interpolation-geodesic-FEATURE.png, with --set-attribute
    images/attribute-NUMBER.png. Of --method geodesic other pictures and a CSV lie beside it."""
    folder: Path | None = None
    """Also write each image of the walks as a PNG of its own into this folder, walk by walk."""


class Joined(NamedTuple):
    """What k walks join."""

    start: Tensor  # (k, d) latents
    end: Tensor  # (k, d)
    first: Tensor | None  # (k, c, h, w), the images encoded, where there are such
    last: Tensor | None
    names: list[str]
    columns: dict[str, list[Any]]  # the ends as a table has them


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and interpolate."""
    options = parse(Options, argv, "interpolate", DESCRIPTION)
    trained = Trained(options)
    real = trained.model.latent_kind == "real"
    choices = WALKINGS[trained.model.latent_kind]
    method = options.method or choices[0]
    if options.set_attribute is not None and real:
        raise UsageError("--set-attribute needs a model whose latents are bits")
    if method != "geodesic":
        for name in ("solver", "spans", "feature", "vgg", "points"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} needs --method geodesic")
    check_method("interpolation", method, (*choices, *["geodesic"] * real), trained.model)
    kind = kind_of_ends(options, real)
    joined = (
        join_images(trained, options) if kind == "images" else join_latents(trained, options, kind)
    )
    plots.check_count(len(joined.start) * options.steps)
    if method == "geodesic":
        walk_shorter(trained, options, joined)
        return
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
    saved = plots.save(picture, trained.place(options.out, name))

    describe(path, joined.names)
    say(f"picture: {saved}")
    save_each(images, options.folder)


def save_each(images: Tensor, folder: Path | None) -> None:
    """Single images, where a folder for them is asked for."""
    if folder is not None:
        plots.save_each(images, folder)
        say(f"single images: {folder}")


def kind_of_ends(options: Options, real: bool) -> Ends:
    """What is walked between; UsageError where the model or other options do not allow it."""
    numbers = (*options.start, *options.end)
    if options.ends is None:
        indices = all(x >= 0 and x.is_integer() for x in numbers)
        return "images" if indices or not real else "constant"
    if options.ends != "images" and not real:
        raise UsageError(f"--ends {options.ends} needs a model with real latents")
    if options.ends == "prior" and numbers:
        raise UsageError("--from and --to do not go with --ends prior; --n says how many walks")
    return options.ends


def join_images(trained: Trained, options: Options) -> Joined:
    """Images of the split, by their indices; with --set-attribute nothing but where to begin."""
    split = trained.split(options.split)
    starts, ends = chosen_pairs(options, len(split), trained.seed)
    first = unit_images(split, starts, trained.device)
    start = encode(trained, split, starts)
    names = [f"{options.split} image {k}" for k in starts.tolist()]
    if options.set_attribute is not None:
        wanted = options.set_attribute
        names = [f"{name} with {wanted} set" for name in names]
        return Joined(start, start, first, None, names, {})
    last = unit_images(split, ends, trained.device)
    names = [f"{name} to {k}" for name, k in zip(names, ends.tolist(), strict=True)]
    columns = {"split": [options.split] * len(starts)}
    columns |= joined_images(split, torch.stack([starts, ends]))
    return Joined(start, encode(trained, split, ends), first, last, names, columns)


def join_latents(trained: Trained, options: Options, kind: Ends) -> Joined:
    """Latents from the prior, or constant ones."""
    if kind == "prior":
        start, end = draw_prior(trained, 2 * options.n, "interpolation").chunk(2)
        return Joined(start, end, None, None, ["two draws from the prior"] * options.n, {})
    values = options.start or CONSTANTS[0], options.end or CONSTANTS[1]
    if len(values[0]) != len(values[1]):
        raise UsageError("--from and --to need as many constants each")
    start, end = (
        torch.tensor(numbers, device=trained.device)[:, None].repeat(1, trained.model.latent_dim)
        for numbers in values
    )
    if not (start.isfinite().all() and end.isfinite().all()):
        raise UsageError("--from and --to must be finite numbers")
    names = [f"all latents {a:g} to all {b:g}" for a, b in zip(*values, strict=True)]
    columns = {"first_value": [*values[0]], "last_value": [*values[1]]}
    return Joined(start, end, None, None, names, columns)


def chosen_pairs(options: Options, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (k,) of the first and the last images, out of `count`."""
    for name, chosen in (("from", options.start), ("to", options.end)):
        whole = all(x.is_integer() for x in chosen)
        if chosen and not (whole and 0 <= min(chosen) <= max(chosen) < count):
            raise UsageError(
                f"--{name} must lie in 0 to {count - 1}, the {options.split} images; got "
                + " ".join(f"{x:g}" for x in chosen)
            )
    if options.set_attribute is not None and options.end:
        raise UsageError("--to does not go with --set-attribute, which makes its own ends")
    start, end = pick_pairs(count, options.n, seed)
    if options.start:
        start = torch.tensor(options.start).long()
    if not len(start):
        raise UsageError(f"the {options.split} split has one image; two to walk between are needed")
    if options.set_attribute is not None:
        return start, start
    if bool(options.start) != bool(options.end) or len(options.start) != len(options.end):
        raise UsageError("--from and --to go together and need as many indices each")
    return start, torch.tensor(options.end).long() if options.end else end


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


def walk_shorter(trained: Trained, options: Options, joined: Joined) -> None:
    """Straight lines and shorter curves between the ends: lengths, cosines, pictures."""
    feature_map = feature_map_of(trained, options.feature, options.vgg)
    metric = metric_of(trained, feature_map)
    points = POINTS if options.points is None else options.points
    found = shorten(
        metric,
        joined.start,
        joined.end,
        "shortening",
        method=options.solver or "lbfgs",
        spans=SPANS if options.spans is None else options.spans,
        points=points,
        seed=trained.seed,
    )
    rows = torch.arange(len(joined.start), device=joined.start.device)
    along = 2 * sequences(trained, metric, found, rows, CORRELATED) - 1
    outputs = {"images": along.flatten(0, 1)}
    if feature_map is not None:
        with torch.no_grad():
            features = [feature_map(part) for part in along.flatten(0, 2).split(trained.batch)]
        outputs["features"] = torch.cat(features).unflatten(0, (-1, CORRELATED))
    cosine = {what: cosines(y).unflatten(0, (-1, 2)) for what, y in outputs.items()}
    place = trained.place(options.out, file_name("interpolation-geodesic", options.feature))
    report(metric, found, joined, points, cosine, place.with_suffix(".csv"))

    images = sequences(trained, metric, found, rows, options.steps)
    twice = (None if x is None else x.repeat_interleave(2, 0) for x in (joined.first, joined.last))
    first, last = twice
    caption = "straight lines and shorter curves, in equal steps"
    if options.feature is not None:
        caption += f" between {FEATURE_NAMES[options.feature]}"
    notes = length_notes(found, rows.tolist())
    picture = plots.walks(first, images.flatten(0, 1), last, caption, notes)
    say(f"picture: {plots.save(picture, place)}")
    for what, values in cosine.items():
        picture = pictures.correlations(*values[:DRAWN].unbind(1), what)
        saved = plots.save(picture, place.with_name(f"{place.stem}-correlations-{what}.png"))
        say(f"picture: {saved}")
    save_each(images.flatten(0, 2), options.folder)


def report(
    metric: Metric,
    found: Experiment,
    joined: Joined,
    points: int,
    cosine: dict[str, Tensor],  # (k, 2, m, m) of straight and shorter, by what it is between
    path: Path,
) -> None:
    """The table on the screen and as CSV."""
    measure = measures(metric, found, points)
    extra = {"curve_measure_straight": measure[0], "curve_measure": measure[1]}
    for what, values in cosine.items():
        variances = values.flatten(2).var(2, correction=0)
        extra[f"variance_of_{what}_straight"] = variances[:, 0]
        extra[f"variance_of_{what}"] = variances[:, 1]
    columns = pair_rows(found, extra, joined.columns)
    what = "features" if "features" in cosine else "images"
    heading = f"{'straight':>11}{'shorter':>11}"
    say(
        f"  {'':4}{'measured lengths':>33}{'by the original':>33}"
        f"{'curve measure':>22}{f'var, {what}':>22}"
    )
    say(f"  {'row':4}" + 2 * f"{heading}{'less':>11}" + 2 * heading)
    shown = (
        "straight_length",
        "length",
        "improvement",
        "original_straight_length",
        "original_length",
        "original_improvement",
        "curve_measure_straight",
        "curve_measure",
        f"variance_of_{what}_straight",
        f"variance_of_{what}",
    )
    for k, name in enumerate(joined.names):
        cells = [
            stated(".2f", " %", 100 * columns[key][k])
            if "improvement" in key
            else stated(".4f", "", columns[key][k])
            for key in shown
        ]
        row = "".join(f"{cell:>11}" for cell in cells)
        say(f"  {k + 1:<4}{row}  {name}; {columns['status'][k].replace('_', ' ')}")
    say(f"  {found.seconds:.2f} s for all")
    write_rows(path, columns)


if __name__ == "__main__":
    sys.exit(main())
