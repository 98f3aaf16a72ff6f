"""Comparisons of two sets of features: closed forms, rival packages, honest errors, bad input."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlatent.metrics import kernel_distance

quick = settings(max_examples=25, deadline=None, derandomize=True)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def features(n, d, seed, dtype=torch.float64):
    """Correlated, shifted and partly zero, as behind a ReLU."""
    make = generator(seed)
    mixing = torch.randn(d, d, generator=generator(99), dtype=dtype) / d**0.5
    return (torch.randn(n, d, generator=make, dtype=dtype) @ mixing + 0.3).relu()


# --- kernel distance -----------------------------------------------------------------------------


def mmd_by_the_formula(x, y, degree=3, gamma=None, coef0=1.0):
    """Sums over pairs as the definition has them."""
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def k(a, b):
        return (gamma * float(a @ b) + coef0) ** degree

    n, m = len(x), len(y)
    xx = sum(k(a, b) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    yy = sum(k(a, b) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_of_four_points():
    real, fake = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 1], [0, 0]])
    result = kernel_distance(real, fake)
    assert result.value == pytest.approx(-2.375, abs=1e-6)
    assert (result.subsets, result.subset_size, result.deviation) == (1, 2, 0)


@pytest.mark.parametrize("kernel", [{}, {"degree": 2, "gamma": 0.3, "coef0": 0.5}, {"degree": 1}])
def test_kernel_distance_of_all_rows_is_the_formula(kernel):
    real, fake = features(23, 5, 0), 1.2 * features(17, 5, 1)
    result = kernel_distance(real, fake, None, **kernel)
    assert result.value == pytest.approx(mmd_by_the_formula(real, fake, **kernel), rel=1e-12)
    assert (result.subsets, result.subset_size) == (1, 17)


@pytest.mark.parametrize(("n", "m"), [(400, 350), (6000, 4500)])  # all pairs; subset by subset
def test_both_ways_of_kernel_distance_give_mean_and_population_deviation(n, m):
    real, fake = features(n, 7, 0), 1.1 * features(m, 7, 1)
    draws = tuple(
        torch.stack([torch.randperm(size, generator=generator(s))[:300] for s in range(6)])
        for size in (n, m)
    )
    result = kernel_distance(real, fake, draws=draws)
    alone = [kernel_distance(real[i], fake[j], None).value for i, j in zip(*draws, strict=True)]
    assert result.value == pytest.approx(np.mean(alone), rel=1e-10)
    assert result.deviation == pytest.approx(np.std(alone), rel=1e-8)
    assert (result.subsets, result.subset_size) == (6, 300)


def fidelity_draws(n, m, subsets, size, seed):
    """The subsets that torch-fidelity draws."""
    rng = np.random.RandomState(seed)
    pairs = [
        (rng.choice(n, size, replace=False), rng.choice(m, size, replace=False))
        for _ in range(subsets)
    ]
    return tuple(torch.tensor(np.array(side)) for side in zip(*pairs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [500, 3000])
def test_kernel_distance_is_that_of_torch_fidelity(n, dtype):
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = features(n, 64, 0), 1.05 * features(n + 50, 64, 1)
    theirs = kid.kid_features_to_metric(
        real,
        fake,
        kid_subsets=7,
        kid_subset_size=200,
        rng_seed=3,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        verbose=False,
    )
    draws = fidelity_draws(n, n + 50, 7, 200, 3)
    ours = kernel_distance(real.to(dtype), fake.to(dtype), draws=draws)
    close = 1e-9 if dtype == torch.float64 else 1e-7  # of kernel values of order 1
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], abs=close)
    assert ours.deviation == pytest.approx(theirs["kernel_inception_distance_std"], abs=close)


def test_kernel_distance_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    real, fake = features(300, 64, 0), 1.05 * features(300, 64, 1)
    theirs = float(kid.poly_mmd(real, fake))
    assert kernel_distance(real, fake).value == pytest.approx(theirs, abs=1e-12)


def test_subsets_are_a_function_of_the_seed():
    real, fake = features(80, 4, 0), features(90, 4, 1)
    first = kernel_distance(real, fake, 5, 30, seed=1)
    assert first == kernel_distance(real, fake, 5, 30, seed=1)
    assert first.value != kernel_distance(real, fake, 5, 30, seed=2).value


def test_fewer_rows_than_a_subset_make_one_subset():
    real, fake = features(40, 4, 0), features(40, 4, 1)
    assert kernel_distance(real, fake) == pytest.approx(kernel_distance(real, fake, None))
    smaller = kernel_distance(real, features(70, 4, 2))
    assert (smaller.subsets, smaller.subset_size) == (1, 40)


@quick
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_kernel_distance_keeps_under_rotation_order_and_scale(seed, scale):
    real, fake = features(20, 4, seed), 1.3 * features(25, 4, seed + 1)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator(seed), dtype=real.dtype)).Q
    order = torch.randperm(20, generator=generator(seed))
    result = kernel_distance(real, fake, None)
    moved = kernel_distance(
        scale * real[order] @ rotation, scale * fake @ rotation, None, gamma=0.25 / scale**2
    )
    assert moved.value == pytest.approx(result.value, abs=1e-9)
    assert moved.error == pytest.approx(result.error, rel=1e-6)
    swapped = kernel_distance(fake, real, None)
    assert swapped.value == pytest.approx(result.value, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.3])  # equal laws, where the first order vanishes; others
@pytest.mark.parametrize(("n", "subsets", "size"), [(100, None, 2), (300, 6, 60), (100, 100, 60)])
def test_the_error_of_kernel_distance_is_the_spread_over_repetitions(shift, n, subsets, size):
    make = generator(5)
    results = [
        kernel_distance(
            torch.randn(n, 6, generator=make),
            torch.randn(n, 6, generator=make) + shift,
            subsets,
            size,
            seed=repetition,
        )
        for repetition in range(300)
    ]
    spread = np.std([result.value for result in results])
    stated = np.sqrt(np.mean([result.error**2 for result in results]))
    assert stated == pytest.approx(spread, rel=0.2)  # 300 draws know the spread to 4 %


# --- bad input -----------------------------------------------------------------------------------

METRICS = {"kernel_distance": kernel_distance}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[:1], ValueError, "fake must have at least"),
        (lambda x: x[:, :3], ValueError, "fake must have as many features as real, 4; got 3"),
        (lambda x: x[:, 0], ValueError, "fake must be \\(samples, features\\)"),
        (lambda x: x.long(), TypeError, "fake must be a floating-point tensor; got torch.int64"),
        (lambda x: x.numpy(), TypeError, "fake must be a floating-point tensor; got ndarray"),
        (lambda x: x.masked_fill(x == x.max(), torch.nan), ValueError, "fake must be finite"),
        (lambda x: x.masked_fill(x == x.max(), torch.inf), ValueError, "fake must be finite"),
    ],
)
def test_sets_that_cannot_be_compared(name, change, error, message):
    with pytest.raises(error, match=f"^{name}: {message}"):
        METRICS[name](features(30, 4, 0), change(features(30, 4, 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subsets": 0}, "subsets must be a positive integer; got 0"),
        ({"subset_size": 1}, "subset_size must be at least 2; got 1"),
        ({"degree": 1.5}, "degree must be a positive integer; got 1.5"),
        ({"draws": (torch.zeros(2, 3).long(),) * 2}, "draws must name different rows of real"),
        (
            {"draws": (torch.arange(31)[None],) * 2},
            "draws must name different rows of real, 0 to 29",
        ),
        ({"draws": (torch.arange(9)[None], torch.arange(8)[None])}, "draws must be two tensors"),
    ],
)
def test_kernel_distance_names_what_it_cannot_use(arguments, message):
    with pytest.raises(ValueError, match=f"^kernel_distance: {message}"):
        kernel_distance(features(30, 4, 0), features(30, 4, 1), **arguments)
