"""Priors fitted to the latents of a trained run, and what the fits came to."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.commands.trained import Trained
from fastlatent.data import Split
from fastlatent.estimate import Estimate
from fastlatent.inference.latents import unit_images
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.progress import format_seconds, say, track
from fastlatent.metrics import frechet_from_features
from fastlatent.models.capabilities import (
    draw_latents,
    encoder_of,
    project,
    stored_latents,
)
from fastlatent.noise import Noise, generator
from fastlatent.priors import (
    Normal,
    Prior,
    PriorSettings,
    VampPrior,
    cross_entropy,
)

ENOUGH = 20_000  # latents: of fewer images so many draws are taken, of stored ones no more
IMPORTANCE = 64  # draws for the density of test latents where it is a bound
HELD_OUT = 10  # where the model stores its latents, one of so many is not fitted to


class Row(NamedTuple):
    """A prior against held-out latents."""

    name: str
    log_prob: Estimate | None  # its value with the sign of a cross-entropy; None: no density
    density: str
    frechet: float  # of draws, in the region of the model's latents, to those held out


def fit_to_run(
    trained: Trained,
    build: Callable[[], Prior],
    z: Tensor,  # (n, dim)
    on_step: Callable[[], None] | None = None,  # called after each step of a fit by gradients
) -> Prior:
    """The prior as built and fitted to z: all that is random, first weights too, by the seed.

    Pseudo-images begin at training images.
    """
    torch.manual_seed(trained.seed)
    prior = build().to(trained.device).bind(encoder_of(trained.model))
    if isinstance(prior, VampPrior):
        split = trained.split("train")
        stream = generator(trained.seed, 0, "pseudo-images")
        chosen = torch.randperm(len(split), generator=stream)[: prior.components]
        prior.start_from(unit_images(split, chosen, trained.device))
    prior.on_step = on_step
    prior.fit(z, seed=trained.seed)
    prior.on_step = None
    return prior.eval()


def latents(trained: Trained, n: int | None, means: bool) -> tuple[Tensor, Tensor]:
    """Latents to fit to, and others to measure with: (k, prior_dim), (m, prior_dim).

    Those to fit to are of n images, of all where n is None; means of the posterior or draws.
    """
    stored = stored_latents(trained.model, trained.data.train)
    if stored is not None:
        order = torch.randperm(len(stored), generator=generator(trained.seed, 0, "held out"))
        held = max(1, min(len(stored) // HELD_OUT, ENOUGH))
        train = stored[order[held:][: n or ENOUGH].to(stored.device)]
        return train.to(trained.device), stored[order[:held].to(stored.device)].to(trained.device)
    split = trained.split("train")
    images = min(len(split), n or len(split))
    # A single draw of few images says little of how wide their posteriors are.
    single = means or not draws_differ(trained)
    train = encoded(trained, split, images, means, 1 if single else -(-ENOUGH // images))
    return train, encoded(trained, trained.split("test"), None, means)


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
