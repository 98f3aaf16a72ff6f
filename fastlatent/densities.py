"""Draw the density of two latents next to their prior: `python -m fastlatent.densities RUN`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
import tyro
from torch import Tensor

from fastlatent import plots
from fastlatent.arguments import RunOptions, Trained
from fastlatent.console import UsageError, command, parse
from fastlatent.data import epoch_order
from fastlatent.experiments.densities import (
    Panel,
    aggregate_posterior,
    circles,
    densities,
    prior_panel,
    window_of,
)
from fastlatent.latents import unit_images
from fastlatent.models import LaDDer, LaDDerConfig
from fastlatent.models.ladder.prior import build_prior
from fastlatent.noise import Noise
from fastlatent.passes import evaluating
from fastlatent.priors import Hierarchical, Prior, PriorKind
from fastlatent.progress import say, track

DESCRIPTION = """Draw the density of two latents next to their prior, for runs of the family ladder.
- one run: the aggregate posterior, the mean of the posteriors of its images, and its prior
- several runs: the same of each, in a column of its own
- one run with --priors: its aggregate posterior, and each of these priors fitted to it

A run of more latents is shown by those of its inner VAE, if those are two.

Examples:
  python -m fastlatent.densities runs/ladder-2d
  python -m fastlatent.densities runs/ladder-2d --priors normal hierarchical gmm vamp ladder
  python -m fastlatent.densities runs/normal runs/gmm runs/ladder --window -6 6 -6 6"""

NAMES: dict[PriorKind, str] = {
    "normal": "Normal",
    "gmm": "GMM",
    "vamp": "VampPrior",
    "hierarchical": "Hierarchical",
    "ladder": "LaDDer",
}


@dataclass(frozen=True)
class Options(RunOptions):
    """The command line."""

    run: tyro.conf.Positional[Path]
    """Run folder, as training left it."""
    others: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Further runs to compare with it."""
    priors: tuple[PriorKind, ...] = ()
    """Priors to fit to the latents of the run; default: its own."""
    images: int = 10_000
    """Training images whose posteriors are shown, at most."""
    window: tuple[float, float, float, float] | None = None
    """Left, right, bottom and top of the pictures; default: around the latents."""
    out: Path | None = None
    """Picture of the densities, a PNG; default: images/densities.png in the first run's folder.
    That of the circles gets a name that ends in -circles.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 2:
            raise ValueError(f"--images must be at least 2; got {self.images}")
        if self.priors and self.others:
            raise ValueError("--priors goes with a single run")
        if self.window is not None:
            left, right, bottom, top = self.window
            if not (left < right and bottom < top):
                raise ValueError(
                    f"--window must be left < right and bottom < top; got {self.window}"
                )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    options = parse(Options, argv, "densities", DESCRIPTION)
    runs = [Trained(replace(options, run=path)) for path in (options.run, *options.others)]
    for trained in runs:
        check(trained)
    columns = [panels_of(trained, options) for trained in runs]
    rows = 1 if len(columns) == 1 else 2
    panels = [*chain(*(columns if rows == 1 else zip(*columns, strict=True)))]
    window = options.window or window_of([column[0].dots for column in columns])
    path = plots.save(densities(panels, window, rows), runs[0].place(options.out, "densities"))
    say(f"densities: {path}")
    path = plots.save(circles(panels, window, rows), path.with_name(f"{path.stem}-circles.png"))
    say(f"components: {path}")


def check(trained: Trained) -> None:
    """UsageError unless the run has two latents, or an inner VAE of two, to draw."""
    model = trained.model
    if not isinstance(model, LaDDer):
        family = trained.run.config.model.family
        raise UsageError(f"{trained.run.path} must be of the family ladder; it is of {family}")
    prior = model.latent_prior
    inner = prior.code.dim if isinstance(prior, Hierarchical) else None
    if 2 not in (model.latent_dim, inner):
        has = f"{model.latent_dim} latents" + ("" if inner is None else f" over {inner} inner ones")
        raise UsageError(f"a picture of a density needs two latents; {trained.run.path} has {has}")


def panels_of(trained: Trained, options: Options) -> list[Panel]:
    """The aggregate posterior of a run, and its priors."""
    model = trained.model
    assert isinstance(model, LaDDer)
    with evaluating(model) as device:
        mean, std = posteriors(trained, options.images)
        noise = Noise(trained.seed, 0).derived("densities")
        z = mean + std * noise.normal("latent", mean.shape, device)
        stream = noise.stream("prior", device)
        prior, kind = model.latent_prior, trained.run.config.model.prior.kind
        of = "Aggregate posterior"
        if model.latent_dim == 2:
            first = aggregate_posterior(of, mean, std, z)
            if not options.priors:
                title = NAMES[kind if model.ruling else "normal"]
                return [first, prior_panel(title, prior, z, stream)]
            fitted = {kind: fit(trained, model, kind, z) for kind in options.priors}
            return [first] + [
                prior_panel(NAMES[kind], one, z, stream) for kind, one in fitted.items()
            ]
        if options.priors:
            raise UsageError(f"--priors needs a run of two latents; this has {model.latent_dim}")
        assert isinstance(prior, Hierarchical)
        mean, std = prior.posterior(z)
        t = mean + std * noise.normal("inner latent", mean.shape, device)
        title = f"{NAMES[kind]}, inner latents"
        return [
            aggregate_posterior(of, mean, std, t),
            prior_panel(title, prior.code, t, stream),
        ]


def posteriors(trained: Trained, images: int) -> tuple[Tensor, Tensor]:  # (n, d) each
    """Means and deviations of the posteriors of training images, drawn by the run's seed."""
    split, batch = trained.split("train"), trained.batch
    order = epoch_order(len(split), trained.seed, 0)[:images]
    parts = [
        trained.model.features(unit_images(split, part, trained.device))
        for part in track(order.split(batch), "latents", -(-len(order) // batch))
    ]
    mean, std = (torch.cat(values) for values in zip(*parts, strict=True))
    return mean, std


def fit(trained: Trained, model: LaDDer, kind: PriorKind, z: Tensor) -> Prior:
    """A prior of that kind, sized as the run's own, fitted to latents (n, d)."""
    config = trained.run.config.model
    assert isinstance(config, LaDDerConfig)
    prior = build_prior(replace(config, prior=replace(config.prior, kind=kind, dim=2)))
    prior.to(z.device).bind(model.encoder)
    say(f"fitting {NAMES[kind]}")
    return prior.fit(z, seed=trained.seed).eval()


if __name__ == "__main__":
    sys.exit(main())
