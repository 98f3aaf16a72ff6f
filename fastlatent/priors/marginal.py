"""p(z) of a hierarchical prior without a bound: for pictures, tests, and few dimensions of t."""

import torch
from torch import Tensor

from fastlatent.priors.hierarchical import Hierarchical
from fastlatent.priors.mixture_density import log_diagonal_mixture


def kernel_log_prob(
    prior: Hierarchical,
    z: Tensor,  # (..., dim)
    draws: int = 20_000,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:  # (...) nats
    """log of the mean of p(z|t) over draws of p(t): unbiased for p(z), so low in the mean of logs.

    Useful where t has few dimensions: the draws have to come near to each z. Raises ValueError for
    draws below 1.
    """
    if draws < 1:
        raise ValueError(f"kernel_log_prob: draws must be at least 1; got {draws}")
    with torch.no_grad():
        means, stds = prior.conditional(prior.code.sample(draws, generator=generator))
    weights = torch.full_like(means[:, 0], draws).log().neg()
    return log_diagonal_mixture(z, weights, means, stds)


def quadrature_log_prob(
    prior: Hierarchical,
    z: Tensor,  # (..., dim)
    side: int = 401,  # points of the grid in each dimension of t
    reach: float = 8.0,  # the grid spans [-reach, reach]
) -> Tensor:  # (...) nats
    """log of the sum of p(z|t) p(t) over a grid of t: log p(z) up to the grid.

    Raises ValueError for t of more than 2 dimensions, side below 2 and reach that is not positive.
    """
    r = prior.code.dim
    if r > 2:
        raise ValueError(f"quadrature_log_prob: t may have at most 2 dimensions; got {r}")
    if side < 2 or not reach > 0:
        raise ValueError(
            f"quadrature_log_prob: side must be at least 2 and reach positive; got {side}, {reach}"
        )
    with torch.no_grad():
        axis = torch.linspace(-reach, reach, side, dtype=torch.float64, device=z.device)
        t = torch.cartesian_prod(*[axis] * r).reshape(-1, r)
        t = t.to(next(prior.parameters()).dtype)
        log_mass = prior.code.log_prob(t) + r * torch.log(axis[1] - axis[0])
        means, stds = prior.conditional(t)
    return log_diagonal_mixture(z, log_mass, means, stds)
