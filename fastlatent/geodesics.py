"""How much shorter latent curves get than straight lines: `python -m fastlatent.geodesics RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments import pictures
from fastlatent.commands.experiments.findings import (
    Files,
    circumstances,
    pair_rows,
    statistics_lines,
    summary_values,
)
from fastlatent.commands.experiments.one_model import (
    Ends,
    draw_map,
    draw_sequences,
    find_pairs,
)
from fastlatent.commands.experiments.shorter import (
    CurveOptions,
    feature_map_of,
    feature_name,
    file_name,
    metric_of,
    shorten,
)
from fastlatent.commands.experiments.two_models import compare
from fastlatent.commands.trained import OptionalRun, Trained
from fastlatent.geometry.metric import Metric
from fastlatent.geometry.solver import Method
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say

DESCRIPTION = """Shorten straight lines in the latent space of a trained model.
- one run: many pairs of latents, by default the published protocol, --ends eigenvector. A start is
  drawn from the prior. Its end lies one step towards the origin, along the eigenvector of the
  largest eigenvalue of the metric.
- two runs: the same pairs of test images in both models, each by its own encoder

The table is printed, and stored as geodesics.json in the run folder. Two runs store it as
comparison.json in the folder of the first. Each pair is a row of geodesics.csv, the curves lie in
geodesics.npz, pictures in images. With --feature the names begin with geodesics-FEATURE.

Lengths are measured on finer and finer grids until their error is small. The original program's
length, on its own coarse grid, stands beside them. A model with two latents also gets a map of the
metric.

Examples:
  python -m fastlatent.geodesics runs/vae-mnist --pairs 100
  python -m fastlatent.geodesics runs/vae-mnist-2d --pairs 1000 --solver original
  python -m fastlatent.geodesics runs/vae-mnist runs/bigan-mnist --pairs 20"""


@dataclass(frozen=True)
class Options(CurveOptions):
    """The command line."""

    other: OptionalRun = None
    """A second run folder, to compare with the first."""
    pairs: int = 100
    """Number of pairs."""
    ends: Literal["eigenvector", "images", "prior"] | None = None
    """Ends of a line: eigenvector, a draw from the prior and a step along the largest eigenvector;
    images, two encoded test images; prior, two draws. Default: eigenvector; for two runs images."""
    step_size: float = 1.0
    """With --ends eigenvector: distance between the ends in latent space."""
    method: Annotated[Method, tyro.conf.arg(name="solver")] = "lbfgs"
    """How curves are shortened; original: the published procedure."""
    spans: tuple[int, ...] = (2, 8)
    """Polynomial pieces of the curves, level by level."""
    points: int = 16
    """Grid points of the original program's length."""
    per_class: int | None = None
    """Images of each class to draw from, at most: the first ones."""
    show: int = 3
    """Pairs to show image by image: those that gain most; for two runs those on which the models
    differ least."""
    threshold: float | None = None
    """Show only pairs whose improvements in two runs differ by at most this many percentage points.
    """
    map: bool = True
    """Draw the map of the metric, for a model with two latents."""
    folder: Path | None = None
    """Folder for all files; default: the run folder, pictures in its images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("per_class", 1), ("show", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                word = name.replace("_", "-")
                raise ValueError(f"--{word} must be at least {least}; got {value}")
        if not 0 < self.step_size < float("inf"):
            raise ValueError(f"--step-size must be positive; got {self.step_size}")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"--threshold must be at least 0; got {self.threshold}")

    @property
    def name(self) -> str:
        """How the names of all files begin."""
        return file_name("geodesics", self.feature)

    @property
    def search(self) -> dict[str, Any]:
        """The options of the search for curves."""
        names = ("method", "spans", "tolerance", "max_iterations", "points", "chunk")
        return {name: getattr(self, name) for name in names}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, shorten lines and report."""
    options = parse(Options, argv, "geodesics", DESCRIPTION, renamed={"--method": "--solver"})
    if options.other is not None:
        compare_two(options)
        return
    if options.threshold is not None:
        raise UsageError("--threshold needs two runs")
    trained = Trained(options)
    metric = metric_of(trained, feature_map_of(trained, options.feature, options.vgg))
    ends = Ends(options.ends or "eigenvector", options.step_size, options.per_class)
    pairs, joined = find_pairs(trained, metric, options.pairs, ends)
    seed = {"seed": trained.seed}
    result = shorten(metric, pairs.start, pairs.end, "shortening", **options.search, **seed)

    files = Files(trained.folder, options.folder)
    name = options.name
    say(
        f"{options.pairs:,} pairs in {trained.path} ({trained.model.latent_dim} latents): "
        f"{ends.about}; {how(options)}" + between(options, metric, ", ")
    )
    say("\n".join(statistics_lines({"": result})))
    ties = int(pairs.tied.sum())
    if ties:
        say(f"  {ties} starts at right angles to the eigenvector; their direction is a convention")
    extra = {"tied": pairs.tied} if ends.kind == "eigenvector" else {}
    files.write_rows(name, pair_rows(result, extra, joined))
    files.write_curves(name, result)
    files.write_values(
        name,
        circumstances(trained, options)
        | {"draws": metric.draws, "ties": ties}
        | summary_values(result),
    )
    measured = between(options, metric, "\n")
    title = f"{trained.path.name}: {len(result.start)} pairs{measured}"
    files.draw(f"{name}-histogram", pictures.improvement_histogram(result, title))
    files.draw(f"{name}-pairs", pictures.improvement_of_pairs(result, title))
    files.draw(f"{name}-history", pictures.length_history(result, title))
    draw_sequences(trained, metric, result, files, name, options.show)
    if options.map and trained.model.latent_dim == 2:
        draw_map(trained, metric, result, files, name, measured)


def compare_two(options: Options) -> None:
    """The same pairs of test images in two models."""
    assert options.other is not None
    if options.ends not in (None, "images"):
        raise UsageError("--ends does not go with two runs, which are compared on the same images")
    if options.feature is not None or options.vgg is not None:
        raise UsageError("--feature and --vgg do not go with two runs, compared by their images")
    first = Trained(options)
    second = Trained(replace(options, run=options.other))
    result = compare(
        (first, second), options.pairs, options.per_class, {**options.search, "seed": first.seed}
    )
    say(f"{options.pairs:,} pairs of test images of {first.data.name}; {how(options)}")
    say("\n".join(statistics_lines(dict(zip(result.names, result.results, strict=True)))))
    result.write(Files(first.folder, options.folder), circumstances(first, options))
    result.draw(Files(first.folder, options.folder), options.show, options.threshold)


def how(options: Options) -> str:
    """By what means curves are shortened."""
    if options.method == "original":
        return "original"
    return f"{options.method}, spans {' '.join(map(str, options.spans))}"


def between(options: Options, metric: Metric, separator: str) -> str:
    """What lengths are measured between, to add where it is not images."""
    if options.feature is None:
        return ""
    return f"{separator}lengths between {feature_name(options.feature, metric)}"


if __name__ == "__main__":
    sys.exit(main())
