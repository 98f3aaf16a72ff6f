"""Fit a prior to the latents of a trained model: `python -m fastlatent.fit_prior RUN`."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.commands.console import command, parse
from fastlatent.commands.experiments.fits import fit_to_run
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import Split
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import Progress, format_seconds, say, track
from fastlatent.metrics import frechet_from_features
from fastlatent.models.capabilities import draw_latents, prior_dim, project, stored_latents
from fastlatent.noise import Noise, generator
from fastlatent.priors import (
    Estimate,
    Normal,
    Prior,
    PriorKind,
    PriorSettings,
    cross_entropy,
)
from fastlatent.runs.priors import prior_file, write_prior

DESCRIPTION = """Fit a prior to the latents of a trained model's images, and store it in the run.

It takes draws of the posterior where the model has one, several of each image where there are few,
codes otherwise; of a Ladder VAE the top layer's latents. Then `sample RUN --method gmm` draws from
it. The table compares it with N(0, I), by mean log-density and by the Frechet distance of draws: on
latents of test images, or of GLO on one in ten of the training codes, to which it is not fitted.

Examples:
  python -m fastlatent.fit_prior runs/vae-digits
  python -m fastlatent.fit_prior runs/vae-digits --prior ladder --code-dim 2 --steps 1000
  python -m fastlatent.sample runs/vae-digits --method ladder"""

ENOUGH = 20_000  # latents: of fewer images so many draws are taken, of stored ones no more
IMPORTANCE = 64  # draws for the density of test latents where it is a bound
HELD_OUT = 10  # where the model stores its latents, one of so many is not fitted to


@dataclass(frozen=True)
class Options(PriorSettings, RunOptions):
    """The command line."""

    prior: PriorKind | Literal["copula"] = "gmm"  # type: ignore[assignment]
    """normal: mean and covariance; gmm: a mixture; vamp: posteriors of learned pseudo-images;
    hierarchical: a second VAE on the latents; ladder: that with a mixture over its own latents;
    copula: refused here, as sample fits that of bits itself."""
    n: int | None = None
    """Training images to take latents of, at most; default: all, or 20,000 where the model stores
    its latents."""
    means: bool = False
    """Fit to means of the posterior, not to draws."""

    def __post_init__(self) -> None:
        if self.prior == "copula":
            raise ValueError(
                "--prior copula is not for fit_prior: sample and interpolate fit the copula of a "
                "run of bits themselves, from its stored codes"
            )
        RunOptions.__post_init__(self)
        PriorSettings.__post_init__(self)


class Row(NamedTuple):
    """A prior against held-out latents."""

    name: str
    log_prob: Estimate | None  # its value with the sign of a cross-entropy; None: no density
    density: str
    frechet: float  # of draws, in the region of the model's latents, to those held out


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, fit and store."""
    options = parse(Options, argv, "fit_prior", DESCRIPTION)
    trained = Trained(options)
    model, settings = trained.model, settings_of(options)
    if model.latent_kind == "bits":
        raise UsageError(
            f"{trained.run.path} holds a model of bits, and a prior of kind {settings.prior} is "
            "over real latents; bits take --method copula or random of sample, without fit_prior"
        )
    trained.check_prior(settings.prior)
    train, test = latents(trained, options)
    began = time.monotonic()
    with Progress(f"fitting {settings.prior}", max(1, settings.trains)) as progress:
        build = partial(settings.build, prior_dim(model), model.image_shape)
        prior = fit_to_run(trained, build, train, progress.advance)
    seconds = time.monotonic() - began
    replaced = prior_file(trained.run, options.weights, settings.prior).is_file()
    path = write_prior(trained.run, options.weights, settings, prior)
    report(trained, prior, settings, test, seconds)
    say(f"{path}{' (in place of the one before)' if replaced else ''}")
    say(f"  python -m fastlatent.sample {trained.run.path} --method {settings.prior}")


def settings_of(options: Options) -> PriorSettings:
    return PriorSettings(
        **{item.name: getattr(options, item.name) for item in fields(PriorSettings)}
    )


def latents(trained: Trained, options: Options) -> tuple[Tensor, Tensor]:
    """Latents to fit to, and others to measure with: (n, prior_dim), (m, prior_dim)."""
    stored = stored_latents(trained.model, trained.data.train)
    if stored is not None:
        order = torch.randperm(len(stored), generator=generator(trained.seed, 0, "held out"))
        held = max(1, min(len(stored) // HELD_OUT, ENOUGH))
        train = stored[order[held:][: options.n or ENOUGH].to(stored.device)]
        return train.to(trained.device), stored[order[:held].to(stored.device)].to(trained.device)
    split = trained.split("train")
    images = min(len(split), options.n or len(split))
    # A single draw of few images says little of how wide their posteriors are.
    single = options.means or not draws_differ(trained)
    train = encoded(trained, split, images, options.means, 1 if single else -(-ENOUGH // images))
    return train, encoded(trained, trained.split("test"), None, options.means)


def draws_differ(trained: Trained) -> bool:
    """Whether the model draws latents of an image, or has one code for it."""
    model, image = trained.model, trained.probe
    with evaluating(model):
        first, second = (draw_latents(model, image, Noise(0, step)) for step in range(2))
    return not torch.equal(first, second)


def encoded(
    trained: Trained, split: Split, limit: int | None, means: bool, draws: int = 1
) -> Tensor:
    """Latents of the split's images, of a random part of them where there is a limit."""
    order = torch.arange(len(split))
    if limit is not None and limit < len(split):
        stream = generator(trained.seed, 0, f"images/{split.name}")
        order = torch.randperm(len(split), generator=stream)[:limit]
    parts = []
    with evaluating(trained.model) as device:
        batches = split.batches(trained.batch, device, order=order)
        total = -(-len(order) // trained.batch)
        for part in track(batches, f"latents of {split.name} images", total):
            drawn = []
            for draw in range(draws):
                noise = Noise(trained.seed, 0).derived(f"prior/{split.name}/{draw}")
                noise = None if means else noise.of_images(part.index)
                drawn.append(draw_latents(trained.model, part.images, noise).float())
            parts.append(torch.stack(drawn, 1).flatten(0, 1))
    return torch.cat(parts)


def report(
    trained: Trained, prior: Prior, settings: PriorSettings, test: Tensor, seconds: float
) -> None:
    """Print what the fit came to, next to N(0, I)."""
    fitted = prior.report
    parts = [f"{fitted.latents:,} latents of {prior.dim} dimensions", format_seconds(seconds)]
    if fitted.components is not None:
        dropped = f", {fitted.dropped:.1%} of the mass dropped" if fitted.dropped > 0.0005 else ""
        parts.append(f"{fitted.active} of {fitted.components} components active{dropped}")
    if not fitted.converged:
        parts.append(f"not converged after {fitted.iterations:,} iterations")
    say(f"{settings.prior}: {'; '.join(parts)}")
    if len(test) < 2:
        say(f"  not measured: it takes 2 held-out latents, and there is {len(test)}")
        return
    say(f"  {'prior':14}{'log-density':>12}{'+/-':>8}   {'density':12}{'Frechet':>9}")
    plain = Normal(prior.dim).to(test.device)
    rows = (
        measured(trained, "N(0, I)", plain, test),
        measured(trained, settings.prior, prior, test),
    )
    for row in rows:
        density = f"{'-':>12}{'':>8}"
        if row.log_prob is not None:
            density = f"{-row.log_prob.value:12.3f}{row.log_prob.error:8.3f}"
        say(f"  {row.name:14}{density}   {row.density.replace('_', ' '):12}{row.frechet:9.4f}")
    say(
        f"  nats per latent vector and squared distance of draws, on {len(test):,} held-out latents"
    )
    standard, own = (row.log_prob for row in rows)
    if standard is not None and own is not None and own.value > standard.value:
        most = "at most " if prior.density == "lower_bound" else ""
        say(
            f"  {settings.prior} is worse than N(0, I) on these latents, "
            f"by {most}{own.value - standard.value:.3f} nats"
        )


def measured(trained: Trained, name: str, prior: Prior, test: Tensor) -> Row:
    stream = generator(trained.seed, 0, f"measure/{name}", test.device)
    log_prob = None
    if prior.density != "none":
        log_prob = cross_entropy(prior, test, IMPORTANCE, generator=stream)
    with torch.no_grad():
        draws = project(trained.model, prior.sample(len(test), generator=stream))
    return Row(name, log_prob, prior.density, float(frechet_from_features(test, draws)))


if __name__ == "__main__":
    sys.exit(main())
