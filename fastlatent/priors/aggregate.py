"""The aggregate posterior q(z) = 1/N sum_i q(z|x_i), and how far a prior is from it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.priors.base import Prior, normal
from fastlatent.priors.gaussian import gaussian_log_prob
from fastlatent.priors.mixture_density import log_diagonal_mixture


class Divergences(NamedTuple):
    """In nats; mean_kl = mutual_information + aggregate_kl, all from the same draws.

    The information is log N at most: once posteriors do not overlap it says nothing but N. Under a
    bound on log p both divergences are upper bounds.
    """

    mean_kl: float  # E KL(q(z|x) || p)
    mutual_information: float  # of x and z
    aggregate_kl: float  # KL(q(z) || p)


def aggregate_log_prob(
    z: Tensor,  # (..., d)
    means: Tensor,  # (N, d) of q(z|x_i)
    stds: Tensor,  # (N, d)
) -> Tensor:  # (...) nats
    """log q(z) of the aggregate posterior, the mean of the N posteriors q(z | x_i)."""
    weights = means.new_full((len(means),), -math.log(len(means)))
    return log_diagonal_mixture(z, weights, means, stds)


@torch.no_grad()
def posterior_divergences(
    prior: Prior,
    means: Tensor,  # (N, d)
    stds: Tensor,  # (N, d)
    draws: int = 1,  # of each posterior
    n: int = 1,  # importance draws where the prior's density is a bound
    *,
    generator: torch.Generator | None = None,
) -> Divergences:
    """Mean KL of N posteriors from the prior and from q(z), and KL of q(z) from the prior, in nats.

    q(z) is the mean of the posteriors. All are Monte Carlo estimates by draws of each posterior.
    Raises ValueError where means and stds are not of one shape (N, d).
    """
    if means.dim() != 2 or means.shape != stds.shape or not len(means):
        raise ValueError(
            "posterior_divergences: means and stds must have one shape (N, d); "
            f"got {tuple(means.shape)} and {tuple(stds.shape)}"
        )
    sums = torch.zeros(3, dtype=torch.float64, device=means.device)
    for _ in range(draws):
        z = means + stds * normal(tuple(means.shape), means, generator)
        log_q_given = gaussian_log_prob(z, means, stds).double()
        log_q = aggregate_log_prob(z, means, stds).double()
        log_p = prior.log_prob(z, n, generator=generator).double()
        parts = (log_q_given - log_p, log_q_given - log_q, log_q - log_p)
        sums += torch.stack([part.mean() for part in parts])
    return Divergences(*(sums / draws).tolist())
