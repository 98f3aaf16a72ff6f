"""Frechet distances: closed forms, both routes, error bars by simulation, moments that stream."""

import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlatent.metrics import (
    FeatureStatistics,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    frechet_standard_error,
)

F64 = torch.float64


def normal(n, d, seed, scale=1.0, shift=0.0):
    make = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, dtype=F64, generator=make)


def by_moments(x, y):
    return frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))


def test_diagonal_gaussians():
    mu, s = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])
    t = torch.tensor([3.0, 2.0, 1.0])
    got = frechet_distance(mu, s.square().diag(), torch.zeros(3), t.square().diag())
    assert got.dtype == F64
    torch.testing.assert_close(got, torch.tensor(5.0 + 4.0 + 4.0, dtype=F64))


def test_against_the_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(300, 40, 0), normal(200, 40, 1, scale=1.5, shift=0.3)
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    root = linalg.sqrtm(a @ b)
    apart = (x.mean(0) - y.mean(0)).numpy()
    want = apart @ apart + np.trace(a + b - 2 * root.real)
    np.testing.assert_allclose(float(by_moments(x, y)), want, rtol=1e-11)


@pytest.mark.parametrize("d", [5, 64])
def test_a_set_is_at_distance_0_from_itself(d):
    for n in (10, 40, 500):
        x = normal(n, d, 0, shift=100)
        trace = float(torch.cov(x.T).trace())
        assert 0 <= float(frechet_from_features(x, x)) <= 1e-8 * trace
        assert 0 <= float(by_moments(x, x)) <= 1e-8 * trace


@pytest.mark.parametrize(("n", "m"), [(500, 400), (20, 30), (20, 300), (300, 20), (2, 2), (65, 65)])
def test_few_features_and_many_give_what_their_moments_give(n, m):
    x, y = normal(n, 64, 0), normal(m, 64, 1, scale=1.3, shift=0.2)
    got, how = frechet_from_features(x, y, diagnostics=True)
    torch.testing.assert_close(got, by_moments(x, y), rtol=1e-8, atol=0)
    assert how.rank == (min(n - 1, 64), min(m - 1, 64))
    assert how.bound < 1e-8 * got
    torch.testing.assert_close(frechet_from_features(x.float(), y.float()), got, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("n", "m"), [(40, 50), (7, 5), (7, 50)])
def test_gradients_with_respect_to_features(n, m):
    x, y = normal(n, 10, 0).requires_grad_(), normal(m, 10, 1, scale=1.3).requires_grad_()
    assert torch.autograd.gradcheck(frechet_from_features, (x, y), atol=1e-4)


def test_a_batch_of_distances():
    sets = [normal(50, 6, seed, scale=seed + 1) for seed in range(4)]
    mu = torch.stack([x.mean(0) for x in sets])
    sigma = torch.stack([torch.cov(x.T) for x in sets])
    got = frechet_distance(mu, sigma, mu[:1].expand_as(mu), sigma[:1].expand_as(sigma))
    want = torch.stack([by_moments(x, sets[0]) for x in sets])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 2**16), n=st.integers(2, 30), d=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_invariances(seed, n, d):
    x, y = normal(n, d, seed), normal(n + 1, d, seed + 1, scale=2.0)
    distance = frechet_from_features(x, y)
    q = torch.linalg.qr(normal(d, d, seed)).Q
    torch.testing.assert_close(frechet_from_features(y, x), distance, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        frechet_from_features(3 + 2 * x @ q, 3 + 2 * y @ q), 4 * distance, rtol=1e-7, atol=1e-8
    )
    repeated = frechet_from_features(x.flip(0), y.flip(0))
    torch.testing.assert_close(repeated, distance, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 6), (12, 30)])
def test_the_standard_error_is_the_spread_of_repetitions(n, d):
    """Of 300 repetitions, whose own spread is known to 4 %."""
    found = []
    for seed in range(300):
        x, y = normal(n, d, 2 * seed), normal(n, d, 2 * seed + 1, scale=1.5, shift=0.3)
        found.append((float(frechet_from_features(x, y)), float(frechet_standard_error(x, y))))
    distances, errors = torch.tensor(found, dtype=F64).T
    ratio = float(errors.mean() / distances.std())
    assert 0.85 < ratio < 1.15


def test_the_error_of_the_extrapolation_holds_the_choice_of_both_sets():
    """Of 60 repetitions, whose own spread is known to 9 %."""
    found = []
    for seed in range(60):
        x, y = normal(600, 4, 2 * seed), normal(400, 4, 2 * seed + 1, scale=1.3, shift=0.3)
        extrapolated = frechet_infinity(x, y, seed=seed)
        found.append((extrapolated.value, extrapolated.error))
    values, errors = torch.tensor(found, dtype=F64).T
    assert 0.7 < float(errors.mean() / values.std()) < 1.3


def test_extrapolation_takes_the_bias_of_few_samples_away():
    x, y = normal(20_000, 24, 0), normal(1500, 24, 1)
    found = frechet_infinity(x, y, points=15, smallest=200)
    assert found.sizes[0] == 200 and found.sizes[-1] == 1500
    assert found.distances[-1] == pytest.approx(float(frechet_from_features(x, y)))
    assert found.distances[0] > 5 * found.distances[-1] > 0.01
    assert abs(found.value) < 0.25 * found.distances[-1] and found.error < found.distances[-1]


@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_streaming_moments_equal_those_of_the_whole(sizes, offset, seed):
    x = normal(sum(sizes) + 2, 5, seed, shift=offset)
    whole, first, second = (FeatureStatistics(5) for _ in range(3))
    parts = x.split([*sizes, 2])
    for number, part in enumerate(parts):
        whole.update(part)
        (first if number % 2 else second).update(part)
    first.merge(second)
    for statistics in (whole, first):
        assert statistics.count == len(x)
        torch.testing.assert_close(statistics.mu, x.mean(0), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(statistics.sigma, torch.cov(x.T), rtol=1e-9, atol=1e-11)


def test_wide_moments_are_whole_and_symmetric():
    x = normal(1500, 600, 0, shift=3)
    statistics = FeatureStatistics(600)
    for part in x.float().split(100):
        statistics.update(part)
    torch.testing.assert_close(statistics.sigma, torch.cov(x.float().double().T))
    assert torch.equal(statistics.sigma, statistics.sigma.T)


def test_pytorch_fid_reads_what_is_saved(tmp_path):
    theirs = pytest.importorskip("pytorch_fid.fid_score", reason="pytorch-fid is not installed")
    x = normal(30, 4, 0)
    statistics = FeatureStatistics(4)
    statistics.update(x)
    path = tmp_path / "ours.npz"
    statistics.save(path)
    mu, sigma = theirs.compute_statistics_of_path(str(path), None, 1, 4, "cpu")
    np.testing.assert_array_equal(mu, statistics.mu.numpy())
    np.testing.assert_array_equal(sigma, statistics.sigma.numpy())


def test_files_with_and_without_a_count(tmp_path):
    x = normal(30, 4, 0)
    statistics = FeatureStatistics(4)
    statistics.update(x)
    statistics.save(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        np.testing.assert_allclose(file["sigma"], np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    loaded = FeatureStatistics.load(tmp_path / "ours.npz")
    assert loaded.count == 30 and torch.equal(loaded.mu, statistics.mu)
    torch.testing.assert_close(loaded.sigma, statistics.sigma)
    moments = {"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)}
    np.savez_compressed(tmp_path / "theirs.npz", **moments)  # as pytorch-fid writes it
    theirs = FeatureStatistics.load(tmp_path / "theirs.npz")
    torch.testing.assert_close(theirs.sigma, statistics.sigma)
    for attempt in (
        lambda: theirs.count,
        lambda: theirs.update(x),
        lambda: statistics.merge(theirs),
    ):
        with pytest.raises(ValueError, match="does not say of how many samples"):
            attempt()
    assert torch.equal(loaded.mu, statistics.mu) and statistics.count == 30
    theirs.save(tmp_path / "again.npz")
    torch.testing.assert_close(FeatureStatistics.load(tmp_path / "again.npz").sigma, theirs.sigma)


def share(rank, port, world, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    statistics = FeatureStatistics(5)
    for part in normal(100, 5, 0, shift=10)[rank::world].split(7):
        statistics.update(part)
    statistics.all_reduce()
    statistics.save(folder / f"{rank}.npz")
    torch.distributed.destroy_process_group()


def test_ranks_share_their_moments(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(share, (port, 2, tmp_path), nprocs=2)
    x = normal(100, 5, 0, shift=10)
    for rank in range(2):
        loaded = FeatureStatistics.load(tmp_path / f"{rank}.npz")
        assert loaded.count == 100
        torch.testing.assert_close(loaded.mu, x.mean(0))
        torch.testing.assert_close(loaded.sigma, torch.cov(x.T))


def unsymmetric(kind):
    sigma = torch.cov(normal(500, 6, 0).T) * torch.logspace(0, 8, 6).outer(torch.logspace(0, 8, 6))
    if kind == "a triangle":
        return sigma.triu()
    if kind == "a small feature":
        sigma[0, 1] += 0.01 * (sigma[0, 0] * sigma[1, 1]).sqrt()
    if kind == "a dead feature":
        sigma[2, :], sigma[:, 2] = 0, 0
        sigma[2, 5] = 1e-3 * sigma[5, 5]
    return sigma


@pytest.mark.parametrize("kind", ["a triangle", "a small feature", "a dead feature"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_sigma_that_is_not_symmetric_is_refused(kind, dtype, tmp_path):
    sigma, mu = unsymmetric(kind).to(dtype), torch.zeros(6, dtype=dtype)
    eye = torch.eye(6, dtype=dtype)
    for name, arguments in (("sigma1", (mu, sigma, mu, eye)), ("sigma2", (mu, eye, mu, sigma))):
        with pytest.raises(ValueError, match=f"^frechet_distance: {name} must be symmetric; its"):
            frechet_distance(*arguments)
        with pytest.raises(ValueError, match=f"^frechet_distance: {name} must be symmetric"):
            frechet_distance(*(part[None] for part in arguments), diagnostics=True)
    np.savez(tmp_path / "moments.npz", mu=mu.numpy(), sigma=sigma.numpy())
    with pytest.raises(ValueError, match=r"moments.npz must hold a symmetric sigma"):
        FeatureStatistics.load(tmp_path / "moments.npz")


@pytest.mark.parametrize("double", [False, True])
def test_a_sigma_that_rounding_in_float32_made_unsymmetric_counts_by_its_symmetric_part(double):
    x = (normal(50_000, 8, 0) * torch.logspace(-3, 3, 8)).float()
    centred = x - x.mean(0)
    sigma = torch.zeros(8, 8)
    for part in centred.split(100):  # as sums that grow round
        sigma += torch.stack([(part * column[:, None]).sum(0) for column in part.T])
    sigma = (sigma.triu() * (1 + 2e-6) + sigma.tril(-1)) / (len(x) - 1)
    assert not torch.equal(sigma, sigma.T)
    mu, eye = torch.zeros(8), torch.eye(8)
    arguments = [part.double() if double else part for part in (mu, sigma, mu, eye)]
    want = frechet_distance(mu.double(), torch.cov(x.double().T), mu.double(), eye.double())
    torch.testing.assert_close(frechet_distance(*arguments), want, rtol=1e-4, atol=0)


X = normal(10, 3, 0)
EYE, ZERO = torch.eye(3, dtype=F64), torch.zeros(3, dtype=F64)
BAD = [
    (lambda: frechet_from_features(X[:1], X), ValueError, "real must have at least 2 r"),
    (
        lambda: frechet_from_features(X, X[:, :2]),
        ValueError,
        "fake must have as many feat",
    ),
    (lambda: frechet_from_features(X, X * torch.nan), ValueError, "fake must be finite"),
    (lambda: frechet_from_features(X, X.long()), TypeError, "fake must be a floating-point tensor"),
    (
        lambda: frechet_from_features(X.numpy(), X),
        TypeError,
        "real must be a floating-p",
    ),
    (lambda: frechet_distance(ZERO, EYE, ZERO, EYE[:2]), ValueError, r"sigma2 \(2, 3\)"),
    (lambda: frechet_distance(ZERO, EYE, ZERO, -EYE), ValueError, "distance: sigma2 must be posit"),
    (
        lambda: frechet_distance(ZERO, -EYE.float(), ZERO, EYE),
        ValueError,
        "sigma1 must be positive semi-definite; its eigenvalues go down to -1.*project_psd gives",
    ),
    (lambda: frechet_distance(ZERO / 0, EYE, ZERO, EYE), ValueError, "mu1 must be finite"),
    (lambda: frechet_distance(ZERO.half(), EYE, ZERO, EYE), TypeError, "mu1 must be a float32 or"),
    (lambda: frechet_infinity(X, X, points=2), ValueError, "points must be at least 3"),
    (lambda: frechet_infinity(X, X, smallest=9), ValueError, "up to the 10 rows of fake; got 15 a"),
    (lambda: FeatureStatistics(0), ValueError, "dim must be at least 1"),
    (lambda: FeatureStatistics(2).update(X), ValueError, r"shape \(n, 2\); got \(10, 3\)"),
    (lambda: FeatureStatistics(3).update(X / 0), ValueError, "must be finite"),
    (lambda: FeatureStatistics(3).update(X.long()), TypeError, "must be a floating tensor"),
    (lambda: FeatureStatistics(3).mu, ValueError, "at least 1 sample; got none"),
    (lambda: FeatureStatistics(3).sigma, ValueError, "at least 2 samples; got 0"),
    (lambda: FeatureStatistics(3).merge(FeatureStatistics(2)), ValueError, "other must have dim 3"),
]


@pytest.mark.parametrize(("attempt", "kind", "sentence"), BAD)
def test_bad_arguments_are_named(attempt, kind, sentence):
    with pytest.raises(kind, match=sentence):
        attempt()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no archive", "is not a readable .npz"),
        ({"mean": np.zeros(3)}, "must hold mu and sigma; it holds mean"),
        (
            {"mu": np.zeros(3), "sigma": np.zeros((2, 2))},
            r"got float64 \(3,\) and float64 \(2, 2\)",
        ),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "is not a readable .npz"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "floating-point mu"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "n": 1}, "n as a number from 2 up; got 1"),
    ],
)
def test_bad_files_are_named(tmp_path, content, sentence):
    path = tmp_path / "statistics.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"{path.name} .*{sentence}"):
        FeatureStatistics.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.npz is not a readable"):
        FeatureStatistics.load(tmp_path / "none.npz")
