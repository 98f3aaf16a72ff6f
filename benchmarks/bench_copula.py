"""Fitting the Bernoulli copula and drawing 10,000 codes, against the original procedure."""

import numpy as np
import pytest
import torch

from fastlatent import ops
from fastlatent.priors import BernoulliCopula, CodeStatistics

BITS, CODES, SAMPLES = 1_500, 60_000, 10_000
PRODUCT = "its float32 product alone"


@pytest.fixture(scope="module")
def codes(device):
    """Codes of 300 noisy clusters: half of the eigenvalues are negative, as with trained codes."""
    make = torch.Generator().manual_seed(0)
    centres = torch.randn(300, BITS, generator=make)
    which = torch.randint(300, (CODES,), generator=make)
    logits = centres[which] + 0.42 * torch.randn(CODES, BITS, generator=make)
    return ops.binarize(logits.to(device))[0]


def original(codes, samples):
    """The procedure of Fajtl et al. 2020 as their program runs it, step for step."""
    n, d = codes.shape
    second = (codes.T @ codes / n).astype(np.float64)
    mean = codes.mean(0, dtype=np.float64)
    bordered = np.block([[second, mean[:, None]], [mean[None, :], np.ones((1, 1))]])
    covariance = np.sin(np.pi / 2 * bordered)
    np.linalg.eig(covariance)
    factor = np.linalg.cholesky(nearest_positive_definite(covariance))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((samples, d + 1))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    signs = np.where(noise @ factor.T >= 0, 1, -1)
    return signs[:, :-1] * signs[:, -1:]


def nearest_positive_definite(a):
    """Higham 1988 through the polar factor, then a growing diagonal until Cholesky succeeds."""
    symmetric = (a + a.T) / 2
    _, s, v = np.linalg.svd(symmetric)
    repaired = (symmetric + v.T @ (s[:, None] * v)) / 2
    repaired = (repaired + repaired.T) / 2
    k = 1
    while not is_positive_definite(repaired):
        lowest = np.min(np.real(np.linalg.eigvals(repaired)))
        repaired += np.eye(len(a)) * (-lowest * k**2 + np.spacing(np.linalg.norm(a)))
        k += 1
    return repaired


def is_positive_definite(a):
    try:
        np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        return False
    return True


def ours(codes):
    statistics = CodeStatistics(BITS, device=codes.device)
    statistics.update(ops.pack_bits(codes))
    make = torch.Generator(codes.device).manual_seed(0)
    return BernoulliCopula().fit(statistics).sample(SAMPLES, generator=make)


@pytest.mark.parametrize("name", ["fastlatent", "original procedure, NumPy"])
def test_fit_and_sample(compare, codes, name):
    array = codes.cpu().numpy() if "NumPy" in name else None
    run, rounds = (
        (lambda: ours(codes), 5) if name == "fastlatent" else (lambda: original(array, SAMPLES), 1)
    )
    size = f"{CODES} codes, D = {BITS}, {SAMPLES} samples"
    compare("bernoulli_copula_sample", "copula fit and sample", size, name, run, rounds)


@pytest.mark.parametrize(
    "name", ["fastlatent", "fastlatent packed", "fastlatent reference", PRODUCT]
)
def test_sampling_alone(compare, device, name):
    make = torch.Generator().manual_seed(0)
    factor = torch.randn(BITS + 1, BITS + 1, generator=make).to(device)
    noise = torch.randn(SAMPLES, BITS + 1, generator=make).to(device)

    def run():
        if name == PRODUCT:
            return noise @ factor.mT
        with ops.use("torch" if "reference" in name else "auto"):
            return ops.bernoulli_copula_sample(factor, noise, packed="packed" in name)

    size = f"{SAMPLES} x {BITS}, rank {BITS + 1}"
    compare("bernoulli_copula_sample", "copula sampling", size, name, run, 5)
