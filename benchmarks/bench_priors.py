"""Log-densities of mixtures with their gradients, against PyTorch's own and against short ways."""

import math

import pytest
import torch
from torch import distributions

from fastlatent.priors.mixture_density import log_diagonal_mixture, log_full_mixture

POINTS, COMPONENTS = 25_600, 50  # 256 images, 100 draws of the latents of each


def mixture(d, device):
    make = torch.Generator().manual_seed(0)
    weights = torch.rand(COMPONENTS, generator=make)
    spread = 0.2 / d**0.5 * torch.randn(COMPONENTS, d, d, generator=make).tril(-1)
    factor = spread + 0.4 * torch.eye(d)
    eye = torch.eye(d).expand_as(factor)
    precisions_cholesky = torch.linalg.solve_triangular(factor, eye, upper=False).mT.contiguous()
    means = 2 * torch.randn(COMPONENTS, d, generator=make)
    z = 2 * torch.randn(POINTS, d, generator=make)
    parts = z, weights / weights.sum(), means, factor, precisions_cholesky
    return [x.to(device) for x in parts]


def side_by_side(z, constant, sheet, offset):
    """All factors in one product, gradients by autograd."""
    y = (z @ sheet - offset).unflatten(1, (len(constant), -1))
    return (constant - 0.5 * y.square().sum(2)).logsumexp(1)


def full_mixtures(d, device):
    z, weights, means, factor, p = mixture(d, device)
    same_family = distributions.MixtureSameFamily(
        distributions.Categorical(weights, validate_args=False),
        distributions.MultivariateNormal(means, scale_tril=factor, validate_args=False),
        validate_args=False,
    )
    log_scale = p.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = weights.log() + log_scale - 0.5 * d * math.log(2 * math.pi)
    sheet, offset = p.permute(1, 0, 2).flatten(1), (means[:, None] @ p).flatten()
    compiled = torch.compile(side_by_side)
    return z.requires_grad_(), {
        "fastlatent": lambda: log_full_mixture(z, weights.log(), means, p),
        "MixtureSameFamily": lambda: same_family.log_prob(z),
        "one product": lambda: side_by_side(z, constant, sheet, offset),
        "one product, torch.compile": lambda: compiled(z, constant, sheet, offset),
    }


def diagonal_mixtures(d, device):
    z, weights, means, _, _ = mixture(d, device)
    stds = torch.full_like(means, 0.4)
    same_family = distributions.MixtureSameFamily(
        distributions.Categorical(weights, validate_args=False),
        distributions.Independent(distributions.Normal(means, stds, validate_args=False), 1),
        validate_args=False,
    )
    return z.requires_grad_(), {
        "fastlatent": lambda: log_diagonal_mixture(z, weights.log(), means, stds),
        "MixtureSameFamily": lambda: same_family.log_prob(z),
    }


MIXTURES = {
    "full": (
        full_mixtures,
        ("fastlatent", "MixtureSameFamily", "one product", "one product, torch.compile"),
    ),
    "diagonal": (diagonal_mixtures, ("fastlatent", "MixtureSameFamily")),
}
ROWS = [(kind, name) for kind, (_, names) in MIXTURES.items() for name in names]


@pytest.mark.parametrize("d", [2, 8, 32])
@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_log_density_and_gradient(compare, device, kind, name, d):
    z, ways = MIXTURES[kind][0](d, device)

    def run(way=name):
        values = ways[way]()
        return values, torch.autograd.grad(values.sum(), z)[0]

    for mine, truth in zip(run("fastlatent"), run("MixtureSameFamily"), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-3, atol=1e-2)
    what, size = f"{kind} mixture, forward + backward", f"{POINTS} x {COMPONENTS} x {d}, float32"
    compare(None, what, size, name, run, 10 if name == "fastlatent" else 5, warmup=1)
