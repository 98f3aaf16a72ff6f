"""Likely paths: 1,000 pairs at once against one after the other, as the original program has them.

The density is a mixture of 50 full Gaussians in 2 dimensions; 8 points, 500 steps from the line.
"""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from fastlatent.paths import likelihood_path
from fastlatent.priors import GaussianMixture

PAIRS, ONE_BY_ONE, POINTS, ITERATIONS, COMPONENTS = 1_000, 5, 8, 500, 50


@pytest.fixture(scope="module")
def density(device):
    """Weights (k,), means (k, 2) and covariances (k, 2, 2)."""
    make = torch.Generator().manual_seed(0)
    means = 1.2 * torch.randn(COMPONENTS, 2, generator=make)
    factor = 0.2 * torch.randn(COMPONENTS, 2, 2, generator=make)
    weights = torch.rand(COMPONENTS, generator=make)
    covariances = factor @ factor.mT + 0.01 * torch.eye(2)
    return [x.to(device) for x in (weights / weights.sum(), means, covariances)]


@pytest.fixture(scope="module")
def ends(device):
    make = torch.Generator().manual_seed(1)
    return torch.randn(2, PAIRS, 2, generator=make).to(device)


def published(density, start, end):
    """The search of the LaDDer program for one pair, on PyTorch's own mixture and Adam."""
    weights, means, covariances = density
    mixture = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
    share = torch.arange(1, POINTS + 1, device=start.device)[:, None] / (POINTS + 1)
    points = torch.lerp(start, end, share).requires_grad_()
    adam = torch.optim.Adam([points], lr=1e-2, betas=(0.9, 0.95))
    for _ in range(ITERATIONS):
        steps = torch.cat([start[None], points, end[None]]).diff(dim=0).norm(dim=1)
        value = 10 * steps.sum() + 100 * steps.std(correction=0) - mixture.log_prob(points).sum()
        adam.zero_grad()
        value.backward()
        # Where all steps are equal, as at first, the gradient of their deviation is NaN.
        points.grad.nan_to_num_().clamp_(-1, 1)
        adam.step()
    return points.detach()


NAMES = ("fastlatent", "fastlatent, 4 starts", f"one pair at a time, {ONE_BY_ONE} of the pairs")


@pytest.mark.parametrize("name", NAMES)
def test_likely_paths(compare, device, density, ends, name):
    weights, means, covariances = density
    # P with P P^T the precision, upper triangular: the Cholesky factor of the reversed matrix.
    upper = torch.linalg.cholesky(torch.linalg.inv(covariances).flip(1, 2)).flip(1, 2)
    mixture = GaussianMixture(2, COMPONENTS).to(device).set(weights, means, upper)
    start, end = ends

    def run():
        if name == "fastlatent":
            likelihood_path(mixture.log_prob, start, end, POINTS, method="original")
        elif name == "fastlatent, 4 starts":
            likelihood_path(mixture.log_prob, start, end, POINTS, iterations=ITERATIONS)
        else:
            for k in range(ONE_BY_ONE):
                published(density, start[k], end[k])

    share = ONE_BY_ONE / PAIRS if name.startswith("one") else 1.0
    size = f"{PAIRS} pairs, {POINTS} points, {ITERATIONS} steps, {COMPONENTS} components in 2-D"
    rounds = 3 if name == "fastlatent" else 1
    compare(None, "likely paths", size, name, run, rounds, share, warmup=0)
