"""The priors of LaDDer, as configured."""

from fastlatent.models.ladder.config import LaDDerConfig
from fastlatent.priors import GaussianMixture, MixtureFit, Normal, Prior


def build_prior(config: LaDDerConfig) -> Prior:
    """The prior of z, before any training."""
    settings = config.prior
    if settings.kind == "normal":
        return Normal(config.dim)
    if settings.kind == "gmm":
        return GaussianMixture(config.dim, settings.components, options=mixture_fit(config))
    raise NotImplementedError


def mixture_fit(config: LaDDerConfig) -> MixtureFit:
    """How the mixture over z (gmm) or t (ladder) is fitted."""
    settings = config.prior
    flat = settings.kind == "gmm"
    return MixtureFit(
        method="em" if settings.original_fit and flat else "bayesian",
        max_latents=config.schedule.refit_samples,
        ridge=settings.ridge if flat else 0.0,
        mode="original" if settings.original_fit else "default",
    )
