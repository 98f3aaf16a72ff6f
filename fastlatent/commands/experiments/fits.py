"""Priors fitted to the latents of a trained run, and what the fits came to."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.commands.trained import Trained
from fastlatent.estimate import Estimate
from fastlatent.jobs.progress import format_seconds, say
from fastlatent.metrics import frechet_from_features
from fastlatent.models.capabilities import (
    project,
)
from fastlatent.noise import generator
from fastlatent.priors import (
    Normal,
    Prior,
    PriorSettings,
    cross_entropy,
)

IMPORTANCE = 64  # draws for the density of test latents where it is a bound


class Row(NamedTuple):
    """A prior against held-out latents."""

    name: str
    log_prob: Estimate | None  # its value with the sign of a cross-entropy; None: no density
    density: str
    frechet: float  # of draws, in the region of the model's latents, to those held out


def report(
    trained: Trained, prior: Prior, settings: PriorSettings, test: Tensor, seconds: float
) -> None:
    """Print what the fit came to, next to N(0, I)."""
    fitted = prior.report
    assert fitted is not None
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
