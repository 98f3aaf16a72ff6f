"""Priors fitted to the latents of a trained run."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.data import Split
from fastlatent.inference.latents import unit_images
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.jobs.progress import Progress, track
from fastlatent.models.capabilities import draw_latents, encoder_of, prior_dim, stored_latents
from fastlatent.noise import Noise, generator
from fastlatent.priors import Prior, PriorSettings, VampPrior
from fastlatent.runs.opened import OpenedRun
from fastlatent.runs.priors import prior_file, write_prior

ENOUGH = 20_000  # latents: of fewer images so many draws are taken, of stored ones no more
HELD_OUT = 10  # where the model stores its latents, one of so many is not fitted to


class Fitted(NamedTuple):
    """A prior that has been fitted to a run and stored in it."""

    prior: Prior
    held_out: Tensor  # (m, dim), latents that it was not fitted to
    seconds: float
    path: Path
    replaced: bool  # one that was there before


def fit_and_store(
    trained: OpenedRun, settings: PriorSettings, n: int | None = None, means: bool = False
) -> Fitted:
    """Fit a prior to latents of n training images, by default all, and store it in the run.

    Raises UsageError where the latents are bits, or no Gaussians that the prior needs.
    """
    model, kind = trained.model, settings.prior
    if model.latent_kind == "bits":
        raise UsageError(
            f"{trained.path} holds a model of bits, and a prior of kind {kind} is over real "
            f"latents; sample draws bits by {setting('method', 'copula')} or random, without "
            "fit_prior"
        )
    trained.check_prior(kind)
    z, held_out = latents(trained, n, means)
    began = time.monotonic()
    with Progress(f"fitting {kind}", max(1, settings.trains)) as progress:
        build = partial(settings.build, prior_dim(model), model.image_shape)
        prior = fit_to_run(trained, build, z, progress.advance)
    seconds = time.monotonic() - began
    replaced = prior_file(trained.folder, trained.weights, kind).is_file()
    path = write_prior(trained.folder, trained.weights, settings, prior)
    return Fitted(prior, held_out, seconds, path, replaced)


def fit_to_run(
    trained: OpenedRun,
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


def latents(trained: OpenedRun, n: int | None, means: bool) -> tuple[Tensor, Tensor]:
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


def draws_differ(trained: OpenedRun) -> bool:
    """Whether the model draws latents of an image, or has one code for it."""
    model, image = trained.model, trained.probe
    with evaluating(model):
        first, second = (draw_latents(model, image, Noise(0, step)) for step in range(2))
    return not torch.equal(first, second)


def encoded(
    trained: OpenedRun, split: Split, limit: int | None, means: bool, draws: int = 1
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
                whole = Noise(trained.seed, 0).derived(f"prior/{split.name}/{draw}")
                noise = None if means else whole.of_images(part.index)
                drawn.append(draw_latents(trained.model, part.images, noise).float())
            parts.append(torch.stack(drawn, 1).flatten(0, 1))
    return torch.cat(parts)
