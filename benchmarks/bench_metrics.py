"""Comparisons of two sets of features against the packages that their users run today.

Features are like those behind a ReLU: correlated, partly zero, of a spectrum that falls.
"""

import contextlib
import ctypes
import gc
import io
import os
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlatent.metrics import Neighbourhoods, kernel_distance

FEATURES = 2_048
ROWS = int(os.environ.get("FASTLATENT_BENCH_ROWS", "10000"))  # of each set
SUBSETS, SUBSET_SIZE = 100, 1_000


@cache
def features(rows):
    make = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, FEATURES + 1) ** -0.5
    mixing = spectrum[:, None] * torch.randn(FEATURES, FEATURES, generator=make)
    real, fake = (
        (torch.randn(rows, FEATURES, generator=make) @ mixing).add_(shift).relu_()
        for shift in (0.0, 0.1)
    )
    return real, fake


def peak(run):
    """MiB that the process held at most while it ran, beyond those it held before."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what glibc keeps would not be counted
        ctypes.CDLL(None).malloc_trim(0)
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    done = threading.Event()
    before = most = int(status.read_text().split()[1])

    def watch():
        nonlocal most
        while not done.is_set():
            most = max(most, int(status.read_text().split()[1]))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run()
    finally:
        done.set()
        thread.join()
    return round((most - before) * page)


def prdc():
    package = pytest.importorskip("prdc")
    real, fake = (x.numpy() for x in features(ROWS))

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            return package.compute_prdc(real, fake, 5)

    return run


def neighbourhoods(*ks):
    real, fake = features(ROWS)

    def run():
        near = Neighbourhoods(real, fake, ks)
        return {k: (near.precision_recall(k), near.density_coverage(k)) for k in ks}

    return run


NEIGHBOURS = {
    "fastlatent": lambda: neighbourhoods(5),
    "fastlatent, k = 3 and k = 5": lambda: neighbourhoods(3, 5),
    "prdc": prdc,
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_precision_recall_density_coverage(timed, name):
    run = NEIGHBOURS[name]()
    size = f"{ROWS} x {ROWS} x {FEATURES}, k = 5, float32"
    timed("precision, recall, density, coverage", size, name, run)


def fidelity(rows):
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


def torchmetrics(rows):
    """Its loop over subsets, without the network before it."""
    package = pytest.importorskip("torchmetrics.image.kid")

    def run():
        real, fake = features(rows)
        values = [
            package.poly_mmd(
                real[torch.randperm(rows)[:SUBSET_SIZE]], fake[torch.randperm(rows)[:SUBSET_SIZE]]
            )
            for _ in range(SUBSETS)
        ]
        return np.mean(values), np.std(values)

    return run


KERNELS = {
    "fastlatent": lambda rows: (
        lambda: kernel_distance(*features(rows), subsets=SUBSETS, subset_size=SUBSET_SIZE)
    ),
    "torch-fidelity": fidelity,
    "torchmetrics": torchmetrics,
}


@pytest.mark.parametrize("rows", [2_000, 5_000, 10_000])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_distance(timed, name, rows):
    """The more rows there are, the fewer pairs are in two subsets, and the less can be shared."""
    size = f"{SUBSETS} subsets of {SUBSET_SIZE} of {rows} x {FEATURES}, float32"
    timed("kernel distance", size, name, KERNELS[name](rows))


@pytest.fixture
def timed(benchmark):
    """timed(what, size, implementation, run): one row, with the memory that it takes."""

    def time_it(what, size, implementation, run):
        benchmark.group = f"{what}, {size}"
        benchmark.extra_info.update(
            op=None, what=what, size=size, implementation=implementation, share=1.0, MiB=peak(run)
        )
        benchmark.pedantic(run, rounds=3 if implementation == "fastlatent" else 1)

    return time_it
