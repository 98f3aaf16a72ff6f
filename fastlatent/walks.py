"""Compare all ways to walk through latents of runs: `python -m fastlatent.walks RUN...`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

DESCRIPTION = """Walk between the same images by every method that a model allows, and compare.
- of images: the mean length of the walks, decoded, as Euclidean distance of images in [0, 1]
- log p: the mean log-density of the inner points in nats, in the space of the prior (real latents)
- FD(classifier): of the inner images against the split, by the features of a small classifier of
  its classes, where the data set has such

A standard error stands behind each number: how much it varies with the walks, of which each is one
draw. The images along one walk depend on each other and do not count as so many.

Examples:
  python -m fastlatent.walks runs/vae-digits
  python -m fastlatent.walks runs/lbae-digits runs/vae-digits runs/bigan-digits --pairs 100"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, as training or convert left them."""
    pairs: int = 32
    """How many walks, between images that the seed draws."""
    steps: int = 10
    """Images on a walk, both ends among them."""
    split: Literal["train", "test"] = "test"
    """Whose images are walked between, and compared with."""
    prior: Density | Literal["auto"] = "auto"
    """Whose density counts: the model's own prior's, or that of one that fit_prior has fitted to
    each run; auto: its own where that has a density, else gmm. A run that has no such is walked
    through by the other methods alone."""
    features: bool = True
    """Take FD(classifier), where the data set has labels."""
    repair: Repair = "clip"
    """What gives way where the moments of the codes fit no copula (bits)."""
    seed: int = 0
    """Seed of everything random here."""
    batch: int | None = None
    """Images to compute at a time; default: each run's --test-batch."""
    device: Device = "auto"
    """auto: the GPU if there is one."""
    root: Path | None = None
    """Folder that holds the data sets, where it is not the one trained with."""
    out: Path = Path("walks.csv")
    """Table to write, as CSV."""

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
        n=options.pairs,
        steps=options.steps,
        split=options.split,
        seed=options.seed,
        batch=options.batch,
        device=options.device,
        root=options.root,
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
