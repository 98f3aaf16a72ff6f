"""Comparisons of two sets of features against the packages that their users run today.

Features are like those behind a ReLU: correlated, partly zero, of a spectrum that falls.
"""

import contextlib
import io
import os
from functools import cache

import pytest
import torch

from fastlatent.metrics import Neighbourhoods, kernel_distance

FEATURES = 2_048
ROWS = int(os.environ.get("FASTLATENT_BENCH_ROWS", "10000"))  # of each set
SUBSETS, SUBSET_SIZE = 100, 1_000


@cache
def features(rows, device="cpu"):
    make = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, FEATURES + 1) ** -0.5
    mixing = spectrum[:, None] * torch.randn(FEATURES, FEATURES, generator=make)
    real, fake = (
        (torch.randn(rows, FEATURES, generator=make) @ mixing).add_(shift).relu_().to(device)
        for shift in (0.0, 0.1)
    )
    return real, fake


def prdc(device):
    package = pytest.importorskip("prdc")
    real, fake = (x.numpy() for x in features(ROWS))

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            return package.compute_prdc(real, fake, 5)

    return run


def neighbourhoods(device, *ks):
    real, fake = features(ROWS, device)

    def run():
        near = Neighbourhoods(real, fake, ks)
        return {k: (near.precision_recall(k), near.density_coverage(k)) for k in ks}

    return run


def whole_matrices(device):
    """The way of prdc on a device: every distance is held."""
    real, fake = features(ROWS, device)

    def radii(x):
        return torch.cdist(x, x).kthvalue(6).values  # the nearest of all is the point itself

    def run():
        between, of_real, of_fake = torch.cdist(real, fake), radii(real), radii(fake)
        near = between < of_real[:, None]
        return (
            near.any(0).double().mean(),
            (between < of_fake).any(1).double().mean(),
            near.sum(0).double().mean() / 5,
            (between.amin(1) < of_real).double().mean(),
        )

    return run


NEIGHBOURS = {
    "fastlatent": lambda device: neighbourhoods(device, 5),
    "fastlatent, k = 3 and k = 5": lambda device: neighbourhoods(device, 3, 5),
    "prdc": prdc,
    "whole matrices, torch.cdist": whole_matrices,
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_precision_recall_density_coverage(compare, device, name):
    run = NEIGHBOURS[name](device)
    size = f"{ROWS} x {ROWS} x {FEATURES}, k = 5, float32"
    rounds = 3 if name == "fastlatent" else 1
    what = "precision, recall, density, coverage"
    compare(None, what, size, name, run, rounds, warmup=0, memory=True)


def fidelity(rows, device):
    package = pytest.importorskip("torch_fidelity.metric_kid")
    options = {
        "kid_subsets": SUBSETS,
        "kid_subset_size": SUBSET_SIZE,
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1.0,
        "rng_seed": 1,
        "verbose": False,
    }
    return lambda: package.kid_features_to_metric(*features(rows), **options)


def torchmetrics(rows, device):
    """Its loop over subsets, without the network before it."""
    package = pytest.importorskip("torchmetrics.image.kid")

    def run():
        real, fake = features(rows, device)

        def chosen():
            return torch.randperm(rows, device=device)[:SUBSET_SIZE]

        values = [package.poly_mmd(real[chosen()], fake[chosen()]) for _ in range(SUBSETS)]
        return torch.stack(values).mean(), torch.stack(values).std()

    return run


KERNELS = {
    "fastlatent": lambda rows, device: (
        lambda: kernel_distance(*features(rows, device), subsets=SUBSETS, subset_size=SUBSET_SIZE)
    ),
    "torch-fidelity": fidelity,
    "torchmetrics": torchmetrics,
}


@pytest.mark.parametrize("rows", [2_000, 5_000, 10_000])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_distance(compare, device, name, rows):
    """The more rows there are, the fewer pairs are in two subsets, and the less can be shared."""
    size = f"{SUBSETS} subsets of {SUBSET_SIZE} of {rows} x {FEATURES}, float32"
    run, rounds = KERNELS[name](rows, device), 3 if name == "fastlatent" else 1
    compare(None, "kernel distance", size, name, run, rounds, warmup=0, memory=True)
