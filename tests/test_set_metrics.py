"""Comparisons of two sets of features: closed forms, rival packages, honest errors, bad input."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import allocated

from fastlatent.metrics import (
    Neighbourhoods,
    PRDCurve,
    density_coverage,
    frechet_from_features,
    kernel_distance,
    prd_curve,
    prd_f_beta,
    prd_of_histograms,
    precision_recall,
    realism,
    score,
)
from fastlatent.metrics.sets import plain_arithmetic, product_dtype

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
@pytest.mark.parametrize(
    ("n", "subsets", "size", "repetitions"),
    [(100, None, 2, 300), (300, 6, 60, 150), (100, 100, 60, 150)],
)
def test_the_error_of_kernel_distance_is_the_spread_over_repetitions(
    shift, n, subsets, size, repetitions
):
    make = generator(5)
    results = [
        kernel_distance(
            torch.randn(n, 6, generator=make),
            torch.randn(n, 6, generator=make) + shift,
            subsets,
            size,
            seed=repetition,
        )
        for repetition in range(repetitions)
    ]
    spread = np.std([result.value for result in results])
    stated = np.sqrt(np.mean([result.error**2 for result in results]))
    assert stated == pytest.approx(spread, rel=0.2)  # 150 draws know the spread to 6 %


# --- precision, recall, density, coverage --------------------------------------------------------


def squared_distances(x, y):
    return torch.stack([(row - y).square().sum(1) for row in x.double()])


def by_the_definition(real, fake, k, closed=False):
    """Precision, recall, density, coverage from all distances in float64."""
    real, fake = real.double(), fake.double()
    # The first of a row's own distances is to itself.
    real_radii = squared_distances(real, real).sort(1).values[:, k, None]
    fake_radii = squared_distances(fake, fake).sort(1).values[:, k]
    between = squared_distances(real, fake)
    within = torch.le if closed else torch.lt
    inside = within(between, real_radii)
    return (
        float(inside.any(0).double().mean()),
        float(within(between, fake_radii).any(1).double().mean()),
        float(inside.double().sum(0).mean()) / k,
        float(inside.any(1).double().mean()),
    )


def values(near, k):
    return tuple(
        estimate.value for estimate in (*near.precision_recall(k), *near.density_coverage(k))
    )


def clusters(n, seed):
    """Points so close around few far centres that float32 products cannot tell them apart."""
    make = generator(seed)
    centres = 1000 * torch.randn(4, 6, generator=generator(7), dtype=torch.float64)
    which = torch.randint(4, (n,), generator=make)
    return centres[which] + 1e-3 * torch.randn(n, 6, generator=make, dtype=torch.float64)


def integers(n, seed):
    """Many copies and many equal distances."""
    return torch.randint(0, 3, (n, 5), generator=generator(seed)).double()


PAIRS = {
    "blocks": lambda: (features(1100, 8, 0), 0.9 * features(1030, 8, 1)),
    "unequal": lambda: (features(60, 12, 0), 1.1 * features(1500, 12, 1)),
    "float32": lambda: (features(300, 50, 0).float(), features(280, 50, 1).float()),
    "bfloat16": lambda: (features(300, 20, 0).bfloat16(), features(280, 20, 1).bfloat16()),
    "far from 0": lambda: (features(200, 9, 0) + 1e6, features(210, 9, 1) + 1e6),
    "huge": lambda: (1e200 * features(200, 9, 0), 1e200 * features(210, 9, 1)),
    "collapsed": lambda: (features(400, 30, 0), 0.05 * features(400, 30, 1) + 0.3),
    "one point": lambda: (features(90, 4, 0), torch.full((80, 4), 0.5, dtype=torch.float64)),
    "clusters": lambda: (clusters(300, 0), clusters(250, 1)),
    "integers": lambda: (integers(300, 0), integers(250, 1)),
    "an outlier": lambda: (torch.cat([features(90, 5, 0), torch.full((1, 5), 1e9)]),) * 2,
    "fewest": lambda: (features(6, 3, 0), features(6, 3, 1)),
}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_decisions_are_those_of_float64_distances(name, closed):
    real, fake = PAIRS[name]()
    near = Neighbourhoods(real, fake, (3, 5), closed=closed)
    scale = 1e-200 if name == "huge" else 1
    for k in (3, 5):
        truth = by_the_definition(scale * real, scale * fake, k, closed)
        assert values(near, k) == pytest.approx(truth, abs=1e-14)


@pytest.mark.parametrize("name", ["blocks", "unequal", "float32", "collapsed"])
def test_results_are_those_of_prdc(name):
    prdc = pytest.importorskip("prdc")
    real, fake = PAIRS[name]()
    theirs = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), 5)
    keys = ("precision", "recall", "density", "coverage")
    ours = values(Neighbourhoods(real, fake, (5,)), 5)
    assert ours == pytest.approx([theirs[key] for key in keys], abs=1e-14)


@pytest.mark.parametrize("name", ["blocks", "unequal", "float32", "collapsed"])
def test_precision_and_recall_are_those_of_torch_fidelity(name):
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = (part.double() for part in PAIRS[name]())
    for k in (3, 5):
        options = {"prc_neighborhood": k, "prc_batch_size": 400, "save_cpu_ram": False}
        theirs = prc.prc_features_to_metric(fake, real, **options, verbose=False)
        ours = precision_recall(real, fake, k)
        assert ours.precision.value == pytest.approx(theirs["precision"], abs=1e-7)  # a float32
        assert ours.recall.value == pytest.approx(theirs["recall"], abs=1e-7)


def test_equal_distances_are_inside_closed_balls_as_in_torch_fidelity_and_outside_open_ones():
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    prdc = pytest.importorskip("prdc")
    real, fake = PAIRS["integers"]()
    options = {"prc_neighborhood": 3, "prc_batch_size": 400, "save_cpu_ram": False}
    theirs = prc.prc_features_to_metric(fake, real, **options, verbose=False)
    closed = precision_recall(real, fake, closed=True)
    assert closed.precision.value == pytest.approx(theirs["precision"], abs=1e-7)  # a float32
    assert closed.recall.value == pytest.approx(theirs["recall"], abs=1e-7)
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), 3)
    opened = precision_recall(real, fake)
    assert opened.precision.value == pytest.approx(theirs["precision"], abs=1e-14)
    assert opened.precision.value < closed.precision.value
    dense = [density_coverage(real, fake, closed=closed) for closed in (False, True)]
    assert dense[0].density.value == pytest.approx(prdc.compute_prdc(real, fake, 5)["density"])
    assert dense[0].density.value < dense[1].density.value


def test_the_errors_of_neighbourhoods_hold_where_distances_are_equal():
    make = generator(3)
    found, stated = [], []
    for _ in range(80):
        near = Neighbourhoods(*torch.randint(0, 4, (2, 200, 6), generator=make).float())
        estimates = (*near.precision_recall(3), *near.density_coverage(5))
        found.append([estimate.value for estimate in estimates])
        stated.append([estimate.error for estimate in estimates])
    ratio = np.sqrt(np.mean(np.square(stated), 0)) / np.std(found, 0)
    assert (ratio > 0.75).all() and (ratio < 1.35).all(), ratio  # known to 8 %


def test_one_pass_gives_what_single_calls_give():
    real, fake = features(150, 6, 0), 0.9 * features(140, 6, 1)
    near = Neighbourhoods(real, fake, (3, 5), realism=True)
    assert [e.value for e in near.precision_recall(3)] == [
        e.value for e in precision_recall(real, fake)
    ]
    assert [e.value for e in near.density_coverage(5)] == [
        e.value for e in density_coverage(real, fake)
    ]
    assert torch.equal(near.realism(3), realism(real, fake))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_realism_is_the_deepest_place_in_a_ball(dtype):
    real, fake = features(1200, 8, 0, dtype), features(70, 8, 1, dtype)
    fake[3] = real[11]
    radii = squared_distances(real, real.double()).sort(1).values[:, 3]
    ratio = (radii[:, None] / squared_distances(real, fake.double()))[radii <= radii.median()]
    ours = realism(real, fake)
    assert math.isinf(ours[3]) == bool(radii[11] <= radii.median())
    torch.testing.assert_close(ours, ratio.amax(0).sqrt(), rtol=1e-6, atol=0)


@quick
@given(st.integers(0, 10**6), st.floats(1e-30, 1e30))
def test_neighbourhoods_keep_under_order_and_scale_and_swap(seed, scale):
    real, fake = features(40, 4, seed), 1.2 * features(45, 4, seed + 1)
    order = torch.randperm(40, generator=generator(seed))
    plain = values(Neighbourhoods(real, fake, (3,)), 3)
    moved = values(Neighbourhoods(real[order] * scale, fake * scale, (3,)), 3)
    assert moved == pytest.approx(plain, abs=1e-14)
    swapped = Neighbourhoods(fake, real, (3,)).precision_recall(3)
    assert (swapped.recall.value, swapped.precision.value) == plain[:2]


@quick
@given(st.integers(0, 10**6))
def test_neighbourhoods_keep_under_rotation(seed):
    real, fake = features(40, 4, seed), 1.2 * features(45, 4, seed + 1)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator(seed), dtype=real.dtype)).Q
    plain = values(Neighbourhoods(real, fake, (3,)), 3)
    assert values(Neighbourhoods(real @ rotation, fake @ rotation, (3,)), 3) == plain


@pytest.mark.parametrize(("d", "scale", "shift"), [(2, 1.0, 0.0), (16, 0.8, 0.3), (8, 1.0, 0.5)])
def test_the_errors_of_neighbourhoods_are_the_spread_over_repetitions(d, scale, shift):
    make = generator(3)
    found, stated = [], []
    for _ in range(120):
        real = torch.randn(200, d, generator=make)
        fake = scale * torch.randn(200, d, generator=make) + shift
        near = Neighbourhoods(real, fake, (3, 5))
        estimates = (*near.precision_recall(3), *near.density_coverage(5))
        found.append([estimate.value for estimate in estimates])
        stated.append([estimate.error for estimate in estimates])
    ratio = np.sqrt(np.mean(np.square(stated), 0)) / np.std(found, 0)
    # 120 repetitions know the spread to 7 %; near 1 coverage is no longer normal.
    assert (ratio > 0.65).all() and (ratio < 1.35).all(), ratio


def test_sets_too_small_to_halve_have_no_error():
    estimate = precision_recall(features(15, 3, 0), features(15, 3, 1)).precision
    assert math.isnan(estimate.error)


def test_no_matrix_of_all_distances_is_held():
    n = 12_000
    real, fake = features(n, 16, 0, torch.float32), features(n, 16, 1, torch.float32)
    precision_recall(real[:2000], fake[:2000])
    assert allocated(lambda: Neighbourhoods(real, fake)) < n * n * 4 / 10


# --- curves of precision and recall --------------------------------------------------------------


@pytest.mark.parametrize(
    ("fake", "real", "recall", "precision"),
    [
        ((0.5, 0.5, 0), (0, 0.5, 0.5), 0.5, 0.5),
        ((1, 0), (0.5, 0.5), 0.5039, 0.9848),
        ((0.5, 0.5), (0.5, 0.5), 1, 1),
        ((1, 0), (0, 1), 0, 0),
    ],
)
def test_curves_of_known_histograms(fake, real, recall, precision):
    curve = prd_of_histograms(torch.tensor(real), torch.tensor(fake))
    score = prd_f_beta(PRDCurve(*curve, *(part.expand(2, -1) for part in curve)))
    assert score.recall.value == pytest.approx(recall, abs=1e-3)
    assert score.precision.value == pytest.approx(precision, abs=1e-3)


def test_a_curve_of_distant_modes_counts_the_missing_one():
    """The fake set has one of two modes: all of it is good, and half of the real one is missing."""
    make = generator(0)
    real = torch.randn(400, 5, generator=make)
    real[200:] += 50
    fake = torch.randn(400, 5, generator=make)
    curve = prd_curve(real, fake, clusters=2, runs=3)
    score = prd_f_beta(curve)
    assert score.recall.value == pytest.approx(0.5039, abs=1e-3)
    assert score.precision.value == pytest.approx(0.9848, abs=1e-3)
    # Of 400 draws the larger half is 0.025 too large on average, one standard deviation.
    assert 0.01 < score.recall.error < 0.04
    assert curve.precision.shape == (1001,)
    again = prd_curve(real, fake, clusters=2, runs=3)
    assert all(torch.equal(*pair) for pair in zip(curve, again, strict=True))


@pytest.mark.parametrize("order", ["classes", "rounds"])
def test_sets_of_different_sizes_are_compared_by_rows_from_everywhere(order):
    """Ten classes one after another, as folders have them, or in turn, as walks have them."""
    make = generator(0)
    places = 20 * torch.eye(10)

    def of(n):
        label = torch.arange(n) * 10 // n if order == "classes" else torch.arange(n) % 10
        return places[label] + torch.randn(n, 10, generator=make)

    large, small = of(800), of(160)
    for real, fake in ((large, small), (small, large)):
        found = score(real, fake)
        assert found.metrics["prd_f8"].value > 0.9 and found.metrics["prd_f1/8"].value > 0.9
        assert "PRD of 160 of each set, drawn at random from the larger" in found.notes
        assert found.metrics == score(real, fake).metrics


def f_scores_by_the_paper(real_counts, fake_counts, beta=8.0, angles=1001):
    """Algorithm 1 and equation 9 of Sajjadi et al. (2018), one slope and one cluster at a time."""
    p = [count / sum(real_counts) for count in real_counts]
    q = [count / sum(fake_counts) for count in fake_counts]
    best = [0.0, 0.0]
    for i in range(1, angles - 1):
        slope = math.tan(math.pi / 2 * i / (angles - 1))
        alpha = sum(min(slope * x, y) for x, y in zip(p, q, strict=True))  # precision
        theta = sum(min(x, y / slope) for x, y in zip(p, q, strict=True))  # recall
        for place, b in enumerate((beta, 1 / beta)):
            if alpha + theta > 0:
                f = (1 + b**2) * alpha * theta / (b**2 * alpha + theta)
                best[place] = max(best[place], f)
    return best


@pytest.mark.parametrize(
    ("real_counts", "fake_counts"),
    [
        ((60, 60, 60, 60, 60), (60, 60, 60, 60, 60)),
        ((100, 80, 60, 40, 20), (20, 40, 60, 80, 100)),
        ((75, 75, 75, 75, 0), (150, 150, 0, 0, 0)),  # fewer modes
        ((150, 150, 0, 0, 0), (75, 75, 75, 75, 0)),  # more modes
        ((100, 100, 100, 0, 0), (0, 1, 0, 200, 99)),  # nearly nothing in common
    ],
)
def test_curves_of_distant_modes_are_those_of_the_paper(real_counts, fake_counts):
    make, places = generator(0), 100 * torch.eye(5, 6)

    def modes(counts):
        where = places.repeat_interleave(torch.tensor(counts), 0)
        return where + torch.randn(where.shape, generator=make)

    used = sum(real > 0 or fake > 0 for real, fake in zip(real_counts, fake_counts, strict=True))
    score = prd_f_beta(prd_curve(modes(real_counts), modes(fake_counts), used, runs=3))
    want = f_scores_by_the_paper(real_counts, fake_counts)
    assert [score.recall.value, score.precision.value] == pytest.approx(want, abs=1e-7)


# --- precision -----------------------------------------------------------------------------------


MEASURES = {
    "frechet_from_features": lambda x, y: [frechet_from_features(x, y)],
    "kernel_distance": lambda x, y: kernel_distance(x, y),
    "precision_recall": lambda x, y: [part for pair in precision_recall(x, y) for part in pair],
    "density_coverage": lambda x, y: [part for pair in density_coverage(x, y) for part in pair],
    "realism": lambda x, y: [realism(x, y).nanmean()],
}


@pytest.mark.parametrize("name", MEASURES)
def test_autocast_and_rounder_products_change_nothing(name):
    x, y = features(200, 40, 0).float(), features(210, 40, 1).float()
    want = [float(part) for part in MEASURES[name](x, y)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [float(part) for part in MEASURES[name](x, y)] == want
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        rounder = [float(part) for part in MEASURES[name](x, y)]
    finally:
        torch.set_float32_matmul_precision(before)
    # In float64 then, where a distance may fall on the other side of a radius.
    assert rounder == pytest.approx(want, rel=1e-3, abs=1e-6)


def test_no_gradients_are_kept():
    x, y = features(30, 4, 0).requires_grad_(), features(30, 4, 1)
    assert not realism(y, x).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain_arithmetic(torch.mm)(x.float(), y.float().mT).dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("highest", torch.float32), ("high", torch.float64), ("medium", torch.float64)],
)
def test_products_are_of_float64_where_those_of_float32_are_rounder(precision, dtype):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert product_dtype(torch.zeros(1), torch.zeros(1).bfloat16()) == dtype
        assert product_dtype(torch.zeros(1), torch.zeros(1).double()) == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


# --- bad input -----------------------------------------------------------------------------------

METRICS = {
    function.__name__: function
    for function in (
        kernel_distance,
        precision_recall,
        density_coverage,
        realism,
        prd_curve,
        Neighbourhoods,
    )
}


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
    if name == "precision_recall" and "ndarray" in message:
        pytest.skip("takes arrays, and sets of images, too: tests/test_compared.py")
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


@pytest.mark.parametrize("function", [precision_recall, density_coverage, realism])
def test_neighbours_need_more_rows_than_k(function):
    name = function.__name__
    with pytest.raises(ValueError, match=f"^{name}: real must have at least 8 rows; got 7"):
        function(features(7, 4, 0), features(30, 4, 1), k=7)
    with pytest.raises(ValueError, match=f"^{name}: k must be a positive integer; got 0"):
        function(features(7, 4, 0), features(30, 4, 1), k=0)


def test_neighbourhoods_say_what_they_were_not_made_for():
    with pytest.raises(ValueError, match=r"^Neighbourhoods: ks must name at least one number"):
        Neighbourhoods(features(30, 4, 0), features(30, 4, 1), ())
    near = Neighbourhoods(features(30, 4, 0), features(30, 4, 1), (3,), recall=False)
    with pytest.raises(ValueError, match=r"^precision_recall: these Neighbourhoods were made with"):
        near.precision_recall(3)
    with pytest.raises(ValueError, match=r"^realism: these Neighbourhoods were made with"):
        near.realism(3)
    with pytest.raises(ValueError, match=r"^density_coverage: k must be one of 3; got 4"):
        near.density_coverage(4)


def test_curves_need_equal_sizes():
    with pytest.raises(ValueError, match=r"^prd_curve: fake must have as many rows as real, 30"):
        prd_curve(features(30, 4, 0), features(31, 4, 1))
    with pytest.raises(ValueError, match=r"^prd_curve: clusters must be at most the 18 rows"):
        prd_curve(features(9, 4, 0), features(9, 4, 1))
    curve = prd_of_histograms(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"^prd_f_beta: beta must be above 0; got 0"):
        prd_f_beta(PRDCurve(*curve, *curve), 0)
