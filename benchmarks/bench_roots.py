"""Roots of covariances and the trace of that of a product, against what FID programs call."""

import inspect
from functools import partial

import pytest
import torch

from fastlatent import ops
from fastlatent.metrics import FeatureStatistics, frechet_from_features

D = 2048
ROUNDS = {"cpu": 3, "cuda": 15}
F64 = torch.float64


def common_basis(exponent, device):
    """Two with eigenvalues from 1 to 10^-exponent, paired at random, and the trace they have."""
    make = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(D, D, dtype=F64, generator=make).to(device)).Q
    values = torch.logspace(0, -exponent, D, dtype=F64)
    other = values[torch.randperm(D, generator=make)].to(device)
    values = values.to(device)
    a, b = ((q * v) @ q.mT for v in (values, other))
    return (a + a.mT) / 2, (b + b.mT) / 2, (values * other).sqrt().sum()


def equal(device):
    """One twice, so that the trace of the root is its own."""
    a, _, _ = common_basis(6, device)
    return a, a.clone(), a.trace()


def of_samples(n, m, device):
    """Covariances of n and m features whose scales spread over two decades; their trace."""
    make = torch.Generator().manual_seed(0)
    x, y = (
        (torch.randn(rows, D, dtype=F64, generator=make) * torch.logspace(0, -2, D)).to(device)
        for rows in (n, m)
    )
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    return x.mT @ x, y.mT @ y, torch.linalg.svdvals(x @ y.mT).sum()


PAIRS = {
    "condition 1e6": partial(common_basis, 6),
    "condition 1e12": partial(common_basis, 12),
    "equal matrices": equal,
    "1,024 samples each": partial(of_samples, 1024, 1024),
    "1,024 and 4,096 samples": partial(of_samples, 1024, 4096),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, device):
    return request.param, *PAIRS[request.param](device)


def by_hand(a, b):
    factor = torch.linalg.cholesky(a)
    return torch.linalg.eigvalsh(factor.mT @ b @ factor).clamp_min(0).sqrt().sum(-1)


def by_symmetric_root(a, b):
    root = torch.linalg.matrix_sqrth(a)
    return torch.linalg.matrix_sqrth(root @ b @ root).trace()


def by_scipy(a, b):
    from scipy import linalg

    product = (a @ b).numpy()
    older = "disp" in inspect.signature(linalg.sqrtm).parameters
    root = linalg.sqrtm(product, disp=False)[0] if older else linalg.sqrtm(product)
    return torch.from_numpy(root).trace().real


RIVALS = {
    "fastlatent": ops.trace_sqrtm,
    "Cholesky and eigvalsh by hand": by_hand,
    "eigvals of the product, as torchmetrics": lambda a, b: (
        torch.linalg.eigvals(a @ b).sqrt().real.sum(-1)
    ),
    "torch.linalg.matrix_sqrth": by_symmetric_root,
    "scipy.linalg.sqrtm, as pytorch-fid": by_scipy,
}


@pytest.mark.parametrize("name", RIVALS)
def test_trace(compare, benchmark, device, pair, name):
    what, a, b, truth = pair
    if "sqrth" in name and not hasattr(torch.linalg, "matrix_sqrth"):
        pytest.skip("this PyTorch has no matrix_sqrth")
    if "by hand" in name and "samples" in what:
        pytest.skip("a singular matrix has no Cholesky factor")
    found = []

    def run():
        found[:] = [RIVALS[name](a, b)]

    if "eigvals of" in name and device == "cuda" and what != "condition 1e6":
        pytest.skip("many seconds a call, whatever the matrices are")
    slow = "eigvals of" in name or "sqrth" in name
    rounds = 1 if "scipy" in name else 2 if slow else ROUNDS[device]
    size = f"{D} x {D}, {what}"
    compare("trace_sqrtm", "trace_sqrtm", size, name, run, rounds)
    benchmark.extra_info["off"] = float((found[0] - truth).abs() / (a.trace() + b.trace()))


@pytest.mark.parametrize("name", list(RIVALS)[:3])
def test_batched(compare, benchmark, device, name):
    if "eigvals of" in name and device == "cuda":
        pytest.skip("one matrix after the other: many seconds a call")
    make = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 512, 256, dtype=F64, generator=make).to(device) / 512**0.5
    a, b = x.mT @ x
    found = []

    def run():
        found[:] = [RIVALS[name](a, b)]

    compare("trace_sqrtm", "trace_sqrtm", "64 x 256 x 256", name, run, 5)
    r = torch.linalg.qr(x, mode="r").R
    truth = torch.linalg.svdvals(r[0] @ r[1].mT).sum(-1)
    traces = x.square().sum((0, 2, 3))
    benchmark.extra_info["off"] = float(((found[0] - truth).abs() / traces).max())


def root_by_hand(a):
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def root_by_scipy(a):
    from scipy import linalg

    return torch.from_numpy(linalg.sqrtm(a.numpy()))


ROOTS = {
    "fastlatent": ops.sqrtm_psd,
    "eigh by hand": root_by_hand,
    "torch.linalg.matrix_sqrth": lambda a: torch.linalg.matrix_sqrth(a),
    "scipy.linalg.sqrtm": root_by_scipy,
}


@pytest.mark.parametrize("name", ROOTS)
def test_root(compare, benchmark, device, name):
    if "sqrth" in name and not hasattr(torch.linalg, "matrix_sqrth"):
        pytest.skip("this PyTorch has no matrix_sqrth")
    make = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(D, D, dtype=F64, generator=make).to(device)).Q
    values = torch.logspace(0, -6, D, dtype=F64, device=device)
    a, truth = ((q * v) @ q.mT for v in (values, values.sqrt()))
    a = (a + a.mT) / 2
    found = []

    def run():
        found[:] = [ROOTS[name](a)]

    rounds = 1 if "scipy" in name else ROUNDS[device]
    compare("sqrtm_psd", "sqrtm_psd", f"{D} x {D}, condition 1e6", name, run, rounds)
    benchmark.extra_info["off"] = float((found[0] - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", ["fastlatent", "2,048 x 2,048 by ours", "by eigvals"])
def test_from_few_features(compare, device, name):
    make = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, D)
    x, y = ((torch.randn(1000, D, generator=make) * scales).to(device) for _ in range(2))

    def by_covariances(trace):
        x64, y64 = x.double(), y.double()
        a, b = torch.cov(x64.T), torch.cov(y64.T)
        apart = x64.mean(0) - y64.mean(0)
        return apart @ apart + a.trace() + b.trace() - 2 * trace(a, b)

    run = {
        "fastlatent": lambda: frechet_from_features(x, y),
        "2,048 x 2,048 by ours": lambda: by_covariances(ops.trace_sqrtm),
        "by eigvals": lambda: by_covariances(RIVALS["eigvals of the product, as torchmetrics"]),
    }[name]
    rounds = 1 if name == "by eigvals" and device == "cuda" else 5
    compare("trace_sqrtm", "Frechet distance", f"1,000 features of {D}", name, run, rounds)


@pytest.mark.parametrize(
    "name",
    ["fastlatent", "sum and X^T X in float64, as torchmetrics", "one float64 product", "copy"],
)
def test_statistics(compare, device, name):
    make = torch.Generator().manual_seed(0)
    x = torch.randn(8192, D, generator=make).to(device)

    def fastlatent():
        statistics = FeatureStatistics(D, device)
        for part in x.split(512):
            statistics.update(part)
        return statistics.sigma

    def sums():
        total, outer = (torch.zeros(s, dtype=F64, device=device) for s in (D, (D, D)))
        for part in x.split(512):
            wide = part.double()
            total += wide.sum(0)
            outer += wide.mT @ wide
        return outer

    wide = x.double()
    run = {
        "fastlatent": fastlatent,
        "sum and X^T X in float64, as torchmetrics": sums,
        "one float64 product": lambda: wide.mT @ wide,
        "copy": lambda: wide.clone(),
    }[name]
    compare("trace_sqrtm", "moments of features", f"8,192 x {D}, float32", name, run, 5)
