"""Compare all ways to walk through latents of runs: `python -m fastlatent.walks RUN...`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments.ends import EndOptions, join
from fastlatent.commands.experiments.findings import write_rows
from fastlatent.commands.experiments.walk_table import Row, features_for, likely_of, lines, rows_of
from fastlatent.commands.trained import Trained
from fastlatent.inference.devices import Device
from fastlatent.inference.latents import Repair
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say
from fastlatent.runs.likely import Density

DESCRIPTION = """Compare all interpolation methods that a model allows, on the same images.

Columns of the table:
- of images: mean length of the decoded paths, as Euclidean distance of images in [0, 1]
- log p: mean log-density of the inner points in nats, in the space of the prior (real latents)
- FD(classifier): Frechet distance of the inner images to the split, by features of a small
  classifier, for data sets with labels

Each number has a standard error. It counts paths, not images: the images of one path depend on each
other.

Examples:
  python -m fastlatent.walks runs/vae-digits
  python -m fastlatent.walks runs/lbae-digits runs/vae-digits runs/bigan-digits --pairs 100"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders, as training or convert left them."""
    pairs: int = 32
    """Pairs of images to interpolate between, drawn by the seed."""
    steps: int = 10
    """Images in an interpolation, both ends included."""
    split: Literal["train", "test"] = "test"
    """Split whose images are interpolated and compared with."""
    prior: Density | Literal["auto"] = "auto"
    """Prior of log p and of likely paths: own, the model's; one that fit_prior has fitted to each
    run; or auto, own where it has a density, else gmm. A run without it leaves out likely paths."""
    features: bool = True
    """Measure FD(classifier), where the data set has labels."""
    repair: Repair = "clip"
    """How to repair moments of the codes that no copula has (bits)."""
    seed: int = 0
    """Seed of all random numbers of this command."""
    batch: int | None = None
    """Images to compute at a time; default: each run's --test-batch."""
    device: Device = "auto"
    """Where to compute; auto: on the GPU if there is one."""
    root: Path | None = None
    """Folder that holds the data sets; default: the one each run was trained with."""
    model_from: str | None = None
    """Python file or installed module of the class, for runs of a model of your own; several with
    commas between them."""
    out: Path = Path("walks.csv")
    """Table to write, a CSV."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name a run folder")
        for name, least in (("pairs", 1), ("steps", 3)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}; got {getattr(self, name)}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and compare."""
    options = parse(Options, argv, "walks", DESCRIPTION)
    rows: list[Row] = []
    for path in options.runs:
        rows += compare_walks(options, path)
    say("\n".join(lines(rows)))
    columns = [row.columns() for row in rows]
    write_rows(options.out.expanduser(), {name: [c[name] for c in columns] for name in columns[0]})


def compare_walks(options: Options, path: Path) -> list[Row]:
    """The rows of one run."""
    chosen = EndOptions(
        path,
        pairs=options.pairs,
        steps=options.steps,
        split=options.split,
        seed=options.seed,
        batch=options.batch,
        device=options.device,
        root=options.root,
        model_from=options.model_from,
    )
    trained = Trained(chosen)
    joined = join(trained, chosen)
    if len(joined.names) < options.pairs:
        raise UsageError(
            f"--pairs must be at most {len(joined.names)}, half of the {options.split} images of "
            f"{path}; got {options.pairs}"
        )
    say(f"{path}: {options.pairs} walks between {options.split} images")
    likely, why_not = likely_of(trained, options.prior)
    features = features_for(trained, options.split) if options.features else None
    rows = rows_of(trained, joined, options.steps, likely, features, options.repair)
    if why_not:
        rows.append(Row(path.name, "likelihood", None, None, None, why_not))
    return rows


if __name__ == "__main__":
    sys.exit(main())
