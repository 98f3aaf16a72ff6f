"""Draw the density of two latents next to their prior: `python -m fastlatent.densities RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from fastlatent import plots
from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments.densities import (
    circles,
    densities,
    window_of,
)
from fastlatent.commands.experiments.density_panels import check, panels_of
from fastlatent.commands.trained import RunFolder, RunOptions, Trained
from fastlatent.jobs.progress import say
from fastlatent.priors import PriorKind

DESCRIPTION = """Draw the density of two latents next to their prior.
- one run: its prior and the aggregate posterior, which is the mean of its images' posteriors
- several runs: the same for each, one column for each run
- one run with --priors: the aggregate posterior, and each of these priors, fitted now
- one run with --stored: also the priors that fit_prior has fitted to it

Posteriors must be Gaussian. LaDDer with more latents is shown by those of its inner VAE, if there
are two of them.

Examples:
  python -m fastlatent.densities runs/ladder-2d
  python -m fastlatent.densities runs/vae-mnist-2d --stored
  python -m fastlatent.densities runs/ladder-2d --priors normal hierarchical gmm vamp ladder
  python -m fastlatent.densities runs/normal runs/gmm runs/ladder --window -6 6 -6 6"""


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    run: RunFolder
    """Run folder, as training left it."""
    others: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]")
    ] = ()
    """Further runs, to compare with the first."""
    priors: tuple[PriorKind, ...] = ()
    """Priors to fit to the run's latents now, each sized as the model's own would be; default: the
    model's own."""
    steps: int | None = None
    """Training steps of --priors vamp, hierarchical and ladder; default: 4000 for vamp, 2000 for
    the others."""
    stored: bool = False
    """Also draw the priors that fit_prior has fitted to the run."""
    images: int = 10_000
    """Training images whose posteriors are shown, at most."""
    window: tuple[float, float, float, float] | None = None
    """Left, right, bottom and top of the pictures; default: around the latents."""
    out: Path | None = None
    """Picture of the densities, a PNG; default: images/densities.png in the first run's folder. A
    picture of the components lies beside it, with a name that ends in -circles.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 2:
            raise ValueError(f"--images must be at least 2; got {self.images}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1; got {self.steps}")
        for name in ("priors", "stored"):
            if getattr(self, name) and self.others:
                raise ValueError(f"--{name} goes with a single run")
        if self.window is not None:
            left, right, bottom, top = self.window
            if not (left < right and bottom < top):
                raise ValueError(
                    f"--window must be left < right and bottom < top; got {self.window}"
                )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    options = parse(Options, argv, "densities", DESCRIPTION, renamed={"--prior-steps": "--steps"})
    runs = [Trained(replace(options, run=path)) for path in (options.run, *options.others)]
    for trained in runs:
        check(trained)
    priors, steps, stored = options.priors, options.steps, options.stored
    columns = [panels_of(trained, options.images, priors, steps, stored) for trained in runs]
    names = [trained.path.name for trained in runs]
    rows = 1 if len(columns) == 1 else 2
    if rows == 2:
        columns = [
            [replace(panel, title=f"{name}\n{panel.title}") for panel in column]
            for name, column in zip(names, columns, strict=True)
        ]
    panels = [*chain(*(columns if rows == 1 else zip(*columns, strict=True)))]
    window = options.window or window_of([column[0].dots for column in columns])
    place, subject = runs[0].place(options.out, "densities"), ", ".join(names)
    path = plots.save(densities(panels, window, rows), place, subject)
    say(f"densities: {path}")
    place = path.with_name(f"{path.stem}-circles.png")
    path = plots.save(circles(panels, window, rows), place, subject)
    say(f"components: {path}")


if __name__ == "__main__":
    sys.exit(main())
