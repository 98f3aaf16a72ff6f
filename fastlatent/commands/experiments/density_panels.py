"""Which densities are drawn of a run: its aggregate posterior, and priors beside it."""

from dataclasses import replace

import torch
from torch import Tensor

from fastlatent.commands.experiments.densities import Panel, aggregate_posterior, prior_panel
from fastlatent.commands.trained import Trained
from fastlatent.data import epoch_order
from fastlatent.inference.latents import unit_images
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import say, track
from fastlatent.models.capabilities import LearnedPrior, gaussian_posterior, latent_prior
from fastlatent.noise import Noise
from fastlatent.priors import Hierarchical, Prior, PriorKind, PriorSettings, VampPrior
from fastlatent.runs.fits import fit_to_run
from fastlatent.runs.priors import prior_file

AGGREGATE = "Aggregate posterior"


NAMES: dict[PriorKind, str] = {
    "normal": "Normal",
    "gmm": "GMM",
    "vamp": "VampPrior",
    "hierarchical": "Hierarchical",
    "ladder": "LaDDer",
}


def check(trained: Trained) -> None:
    """UsageError unless the run has two latents, or an inner VAE of two, to draw."""
    model, path = trained.model, trained.path
    family = trained.config.model.family
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


def panels_of(
    trained: Trained,
    images: int,  # training images whose posteriors are shown, at most
    priors: tuple[PriorKind, ...] = (),  # to fit now, in place of the run's own
    steps: int | None = None,  # of their training; None: as they have it
    stored: bool = False,  # those of fit_prior, too
) -> list[Panel]:
    """The aggregate posterior of a run, and its priors."""
    model = trained.model
    with evaluating(model) as device:
        mean, std = posteriors(trained, images)
        noise = Noise(trained.seed, 0).derived("densities")
        z = mean + std * noise.normal("latent", mean.shape, device)
        stream = noise.stream("prior", device)
        if model.latent_dim == 2:
            first = aggregate_posterior(AGGREGATE, mean, std, z)
            found = priors_of(trained, z, priors, steps, stored)
            return [first, *(prior_panel(title, one, z, stream) for title, one in found.items())]
        if priors or stored:
            option = "--priors" if priors else "--stored"
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


def priors_of(
    trained: Trained, z: Tensor, priors: tuple[PriorKind, ...], steps: int | None, stored: bool
) -> dict[str, Prior]:
    """The priors to draw by their titles: the run's own, or those to fit; then those stored."""
    if priors:
        found = {NAMES[kind]: fit(trained, kind, z, steps) for kind in priors}
    else:
        own = latent_prior(trained.model)
        found = {} if own is None else {own_name(trained): own.to(z.device).eval()}
    if stored:
        weights = trained.weights
        kinds = [kind for kind in NAMES if prior_file(trained.folder, weights, kind).is_file()]
        if not kinds:
            raise UsageError(
                f"--stored finds no prior in {trained.path}; fit one by "
                f"python -m fastlatent.fit_prior {trained.path}"
            )
        found |= {f"{NAMES[kind]}, fit_prior": trained.prior(kind) for kind in kinds}
    return found


def own_name(trained: Trained) -> str:
    """What the prior of a model is called."""
    model = trained.model
    return NAMES[model.prior_kind if isinstance(model, LearnedPrior) else "normal"]


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


def fit(trained: Trained, kind: PriorKind, z: Tensor, steps: int | None) -> Prior:
    """A prior of that kind fitted to latents (n, 2), of the family ladder sized as the run's."""
    model = trained.model
    say(f"fitting {NAMES[kind]}")

    def build() -> Prior:
        if isinstance(model, LearnedPrior):
            prior = model.untrained_prior(kind, 2)
        else:
            prior = PriorSettings(kind).build(2, model.image_shape)
        if steps is not None and isinstance(prior, Hierarchical | VampPrior):
            prior.two_stage = replace(prior.two_stage, steps=steps)
        return prior

    return fit_to_run(trained, build, z)
