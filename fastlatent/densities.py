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
from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments.densities import (
    Panel,
    aggregate_posterior,
    circles,
    densities,
    prior_panel,
    window_of,
)
from fastlatent.commands.experiments.fits import fit_to_run
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import epoch_order
from fastlatent.inference.latents import unit_images
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say, track
from fastlatent.models import LaDDer, LaDDerConfig
from fastlatent.models.capabilities import gaussian_posterior, latent_prior
from fastlatent.models.ladder.prior import build_prior
from fastlatent.noise import Noise
from fastlatent.priors import Hierarchical, Prior, PriorKind, PriorSettings, VampPrior
from fastlatent.runs.priors import prior_file

DESCRIPTION = """Draw the density of two latents next to their prior, where posteriors are Gaussian.
- one run: the aggregate posterior, the mean of the posteriors of its images, and its prior
- several runs: the same of each, in a column of its own
- one run with --priors: its aggregate posterior, and each of these priors fitted to it now
- one run with --stored: the priors that fit_prior has fitted to it, beside its own

A run of the family ladder with more latents is shown by those of its inner VAE, if those are two.

Examples:
  python -m fastlatent.densities runs/ladder-2d
  python -m fastlatent.densities runs/vae-mnist-2d --stored
  python -m fastlatent.densities runs/ladder-2d --priors normal hierarchical gmm vamp ladder
  python -m fastlatent.densities runs/normal runs/gmm runs/ladder --window -6 6 -6 6"""

AGGREGATE = "Aggregate posterior"
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
    """Priors to fit to the latents of the run, sized as its own where that is one of these;
    default: its own."""
    prior_steps: int | None = None
    """Steps of training of --priors vamp, hierarchical and ladder; default: 4000 of vamp, 2000 of
    the others."""
    stored: bool = False
    """Draw the priors that fit_prior has fitted to the run, too."""
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
        if self.prior_steps is not None and self.prior_steps < 1:
            raise ValueError(f"--prior-steps must be at least 1; got {self.prior_steps}")
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
    options = parse(Options, argv, "densities", DESCRIPTION)
    runs = [Trained(replace(options, run=path)) for path in (options.run, *options.others)]
    for trained in runs:
        check(trained)
    columns = [panels_of(trained, options) for trained in runs]
    names = [trained.run.path.name for trained in runs]
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


def check(trained: Trained) -> None:
    """UsageError unless the run has two latents, or an inner VAE of two, to draw."""
    model, path = trained.model, trained.run.path
    family = trained.run.config.model.family
    if model.latent_kind != "real" or not trained.gives_gaussians:
        raise UsageError(
            f"a picture of a density needs Gaussian posteriors of real latents; {path} is of "
            f"{family} and has none"
        )
    prior = latent_prior(model)
    inner = prior.code.dim if isinstance(prior, Hierarchical) else None
    if 2 not in (model.latent_dim, inner):
        has = f"{model.latent_dim} latents" + ("" if inner is None else f" over {inner} inner ones")
        raise UsageError(f"a picture of a density needs two latents; {path} has {has}")


def panels_of(trained: Trained, options: Options) -> list[Panel]:
    """The aggregate posterior of a run, and its priors."""
    model = trained.model
    with evaluating(model) as device:
        mean, std = posteriors(trained, options.images)
        noise = Noise(trained.seed, 0).derived("densities")
        z = mean + std * noise.normal("latent", mean.shape, device)
        stream = noise.stream("prior", device)
        if model.latent_dim == 2:
            first = aggregate_posterior(AGGREGATE, mean, std, z)
            found = priors_of(trained, options, z)
            return [first, *(prior_panel(title, one, z, stream) for title, one in found.items())]
        if options.priors or options.stored:
            option = "--priors" if options.priors else "--stored"
            raise UsageError(f"{option} needs a run of two latents; this has {model.latent_dim}")
        prior = latent_prior(model)
        assert isinstance(prior, Hierarchical)
        mean, std = prior.posterior(z)
        t = mean + std * noise.normal("inner latent", mean.shape, device)
        title = f"{own_name(trained)}, inner latents"
        return [
            replace(aggregate_posterior(AGGREGATE, mean, std, t), latent="inner latent"),
            replace(prior_panel(title, prior.code, t, stream), latent="inner latent"),
        ]


def priors_of(trained: Trained, options: Options, z: Tensor) -> dict[str, Prior]:
    """The priors to draw by their titles: the run's own, or those to fit; then those stored."""
    if options.priors:
        found = {NAMES[kind]: fit(trained, kind, z, options) for kind in options.priors}
    else:
        own = latent_prior(trained.model)
        found = {} if own is None else {own_name(trained): own.to(z.device).eval()}
    if options.stored:
        stored = [
            kind for kind in NAMES if prior_file(trained.run, options.weights, kind).is_file()
        ]
        if not stored:
            raise UsageError(
                f"--stored finds no prior in {trained.run.path}; fit one by "
                f"python -m fastlatent.fit_prior {trained.run.path}"
            )
        found |= {f"{NAMES[kind]}, fit_prior": trained.prior(kind) for kind in stored}
    return found


def own_name(trained: Trained) -> str:
    """What the prior of a model is called."""
    model = trained.model
    if isinstance(model, LaDDer) and model.ruling:
        return NAMES[trained.run.config.model.prior.kind]
    return NAMES["normal"]


def posteriors(trained: Trained, images: int) -> tuple[Tensor, Tensor]:  # (n, d) each
    """Means and deviations of the posteriors of training images, drawn by the run's seed."""
    split, batch = trained.split("train"), trained.batch
    order = epoch_order(len(split), trained.seed, 0)[:images]
    parts = [
        gaussian_posterior(trained.model, unit_images(split, part, trained.device))
        for part in track(order.split(batch), "latents", -(-len(order) // batch))
    ]
    mean, std = (torch.cat(values) for values in zip(*parts, strict=True))
    return mean, std


def fit(trained: Trained, kind: PriorKind, z: Tensor, options: Options) -> Prior:
    """A prior of that kind fitted to latents (n, 2), of the family ladder sized as the run's."""
    config = trained.run.config.model
    say(f"fitting {NAMES[kind]}")

    def build() -> Prior:
        if isinstance(config, LaDDerConfig):
            prior = build_prior(replace(config, prior=replace(config.prior, kind=kind, dim=2)))
        else:
            prior = PriorSettings(kind).build(2, trained.model.image_shape)
        if options.prior_steps is not None and isinstance(prior, Hierarchical | VampPrior):
            prior.two_stage = replace(prior.two_stage, steps=options.prior_steps)
        return prior

    return fit_to_run(trained, build, z)


if __name__ == "__main__":
    sys.exit(main())
