"""Roots of covariances: known values, hard spectra, derivatives where matrices are singular."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlatent import ops
from fastlatent.ops.roots import factors, nuclear, polar
from fastlatent.ops.roots.square_root import psd

F64 = torch.float64


def orthogonal(d, seed):
    make = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, dtype=F64, generator=make)).Q


def spectrum(values, seed):
    """A matrix with these eigenvalues in a random basis."""
    q = orthogonal(len(values), seed)
    a = (q * values) @ q.mT
    return (a + a.mT) / 2


def decades(d, exponent):
    return torch.logspace(0, -exponent, d, dtype=F64)


def low_rank(d, rank, seed):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(d, rank, dtype=F64, generator=make) * decades(rank, 2)


def error(a, b, truth):
    return float((ops.trace_sqrtm(a, b) - truth).abs() / (a.trace() + b.trace()))


def test_diagonal_matrices():
    a, b = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 16.0, 25.0])
    torch.testing.assert_close(ops.sqrtm_psd(a.diag()), a.sqrt().diag())
    torch.testing.assert_close(ops.trace_sqrtm(a.diag(), b.diag()), torch.tensor(14.0))


@pytest.mark.parametrize("exponent", [0, 3, 6, 9, 12, 15])
@pytest.mark.parametrize("d", [60, 600])
def test_the_trace_of_equal_matrices_is_their_trace(d, exponent):
    """Which makes their Frechet distance 0: to 1e-8 of the trace, whatever the condition."""
    a = spectrum(decades(d, exponent), 0)
    root, how = ops.trace_sqrtm(a, a, diagnostics=True)
    assert abs(float(root - a.trace())) <= 1e-9 * 2 * float(a.trace())
    assert float((root - a.trace()).abs()) <= float(how.bound) + 1e-14 * float(a.trace())


@pytest.mark.parametrize("exponents", [(0, 6), (6, 6), (3, 12), (12, 12)])
def test_the_trace_of_matrices_with_a_common_basis(exponents):
    q, values = orthogonal(300, 0), [decades(300, e) for e in exponents]
    values[1] = values[1].flip(0)
    a, b = ((q * v) @ q.mT for v in values)
    assert error(a, b, (values[0] * values[1]).sqrt().sum()) < 1e-9


@pytest.mark.parametrize(("rank_a", "rank_b"), [(100, 200), (100, 100), (1, 200), (180, 50)])
def test_singular_matrices_against_the_factors_they_are_made_of(rank_a, rank_b):
    v, w = low_rank(200, rank_a, 0), low_rank(200, rank_b, 1)
    truth = torch.linalg.svdvals(v.mT @ w).sum()
    a, b = v @ v.mT, w @ w.mT
    assert error(a, b, truth) < 1e-9
    rank = ops.trace_sqrtm(a, b, diagnostics=True)[1].rank
    assert rank == (rank_a, rank_b)
    batched = ops.trace_sqrtm(torch.stack([a, b]), torch.stack([b, b]))
    torch.testing.assert_close(batched[0], truth, rtol=1e-8, atol=0)


@given(
    d=st.integers(2, 9),
    copied=st.booleans(),
    batched=st.booleans(),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
def test_singular_covariances_that_rounding_makes_regular(d, copied, batched, scale, seed):
    """Cholesky factorises about every second of them by chance, with roots of rounding errors."""
    make = torch.Generator().manual_seed(seed)
    rank = d - 1 if copied else (d + 1) // 2
    x = torch.randn(50, rank, dtype=F64, generator=make)
    x = x @ (torch.eye(rank, d) if copied else torch.randn(rank, d, generator=make)).double()
    if copied:
        x[:, -1] = scale * x[:, 0]
    a, eye = x.mT.cov(), torch.eye(d, dtype=F64)
    factor = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    truth = torch.linalg.svdvals(factor)[:rank].sum()
    if batched:
        found, how = ops.trace_sqrtm(a[None], eye[None], diagnostics=True)
        assert float((found - truth).abs() / (a.trace() + d)) < 1e-12
        return
    found, how = ops.trace_sqrtm(a, eye, diagnostics=True)
    assert how.rank == (rank, d)
    assert float((found - truth).abs()) <= 4 * how.bound
    assert error(a, eye, truth) < 1e-13


def test_more_blocks_of_a_pivoted_factor_than_one():
    w = low_rank(400, 150, 0)
    a = w @ w.mT
    factor = factors.pivoted_cholesky(a)
    assert factor.shape == (400, 150) and factors.PANEL < 150
    torch.testing.assert_close(factor @ factor.mT, a, rtol=0, atol=1e-11 * float(a.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_features_that_never_vary_are_left_out(dtype):
    a, b = (psd((30,), 30, "cpu", dtype, seed=seed) for seed in (0, 1))
    live = torch.arange(30) % 3 > 0
    dead = a * live * live[:, None]
    inner = a[live][:, live], b[live][:, live]
    found, how = ops.trace_sqrtm(dead, b, diagnostics=True)
    assert how.rank == (20, 30)
    torch.testing.assert_close(found, ops.trace_sqrtm(*inner))
    assert ops.trace_sqrtm(0 * a, b) == 0
    dead.requires_grad_()
    (got,) = torch.autograd.grad(ops.trace_sqrtm(dead, b), dead)
    want, _ = torch.func.grad(ops.trace_sqrtm, argnums=(0, 1))(*inner)
    torch.testing.assert_close(got[live][:, live], want)
    assert got[~live][:, ~live].abs().max() < 1e-12


# Entries a11, a12, a22 of two nearly singular matrices: the worst found among random pairs.
NEARLY_SINGULAR = [
    (
        (0.9755452103029889, -0.13741218453678894, 0.22787688247917812),
        (0.8079229708772321, 0.39393329893033824, 0.1920770291227686),
    ),
    (
        (0.5185907798102912, 0.30901505309816835, 0.8016442165282294),
        (0.07044303555241918, -0.25589219271908165, 0.9295569644475808),
    ),
    (
        (0.22691649810877298, -0.4188381560875562, 0.773083501891227),
        (0.9298014680929672, 0.08617082106639751, 0.8942227109095255),
    ),
]


@pytest.mark.parametrize(("a", "b"), NEARLY_SINGULAR)
def test_what_counts_as_singular_costs_no_more_than_stated(a, b):
    """(tr (A B)^(1/2))^2 = tr A B + 2 (det A det B)^(1/2) of 2 x 2 matrices, in 50 digits."""

    def trace(x, y):
        root = mpmath.sqrt(abs((x[0] * x[2] - x[1] ** 2) * (y[0] * y[2] - y[1] ** 2)))
        return mpmath.sqrt(x[0] * y[0] + 2 * x[1] * y[1] + x[2] * y[2] + 2 * root)

    with mpmath.workdps(50):
        x, y = (tuple(map(mpmath.mpf, entries)) for entries in (a, b))
        truth = trace(x, y)
        rounded = [1 + sign * mpmath.mpf(2) ** -52 for sign in (-1, 1)]
        moved = [trace((x[0] * r, *x[1:]), (y[0] * r, *y[1:])) - truth for r in rounded]
    matrices = [torch.tensor([[e[0], e[1]], [e[1], e[2]]], dtype=F64) for e in (a, b)]
    got, how = ops.trace_sqrtm(*matrices, diagnostics=True)
    scale = a[0] + a[2] + b[0] + b[2]
    assert sum(how.rank) == 3
    assert abs(float(got) - float(truth)) / scale < math.sqrt(18 * torch.finfo(F64).eps) / 2
    # Rounding an entry once moves the exact trace visibly, too.
    assert max(map(abs, moved)) / scale > 1e-10


def test_features_of_very_different_scale_keep_their_rank():
    values = decades(30, 14)
    assert ops.trace_sqrtm(values.diag(), values.diag(), diagnostics=True)[1].rank == (30, 30)
    with_zero = torch.cat([values, torch.zeros(1, dtype=F64)]).diag()
    root, how = ops.trace_sqrtm(with_zero, with_zero, diagnostics=True)
    assert how.rank == (30, 30)
    torch.testing.assert_close(root, values.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", [0, 2, 6, 10, 14])
def test_the_polar_route_keeps_its_bound(exponent):
    c = (orthogonal(120, 0) * decades(120, exponent)) @ orthogonal(120, 1)
    value, bound = polar.polar_trace(c)
    truth = torch.linalg.svdvals(c).sum()
    assert (value - truth).abs() <= bound <= (1e-9 if exponent <= 10 else 1e-8) * truth


def test_the_polar_route_says_when_it_fails():
    """Started as if all singular values were large, it leaves the small ones behind."""
    c = (orthogonal(80, 0) * decades(80, 6)) @ orthogonal(80, 1)
    value, bound = polar.polar_trace(c, smallest=1e-2)
    truth = torch.linalg.svdvals(c).sum()
    assert 1e-9 * truth < (value - truth).abs() <= bound


def test_the_bound_of_the_polar_route_holds_whatever_the_iteration_did():
    """Here it ended at a matrix that has no singular vector in common with c."""
    wrong, c = torch.zeros(2, 3, 3, dtype=F64)
    wrong[0, 1] = c[0, 0] = 1
    value, bound = polar.certified_trace(wrong, c)
    assert value == 0 and bound >= 1


@given(seed=st.integers(0, 2**16), m=st.integers(1, 6), more=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_the_bound_of_the_polar_route_holds_for_any_contraction(seed, m, more):
    make = torch.Generator().manual_seed(seed)
    x, c = torch.randn(2, m, m + more, dtype=F64, generator=make)
    value, bound = polar.certified_trace(x / torch.linalg.matrix_norm(x, 2), c)
    assert (value - torch.linalg.svdvals(c).sum()).abs() <= bound


def test_what_the_polar_route_cannot_do_falls_to_eigenvalues(monkeypatch):
    c = (orthogonal(80, 0) * decades(80, 6)) @ orthogonal(80, 1)
    truth = torch.linalg.svdvals(c).sum()
    monkeypatch.setattr(nuclear, "polar_pays", lambda c: True)
    assert nuclear.nuclear_norm(c, truth).route == "polar"
    monkeypatch.setattr(nuclear, "LEAST", 1e-2)
    found = nuclear.nuclear_norm(c, truth)
    assert found.route != "polar"
    torch.testing.assert_close(found.value, truth, rtol=1e-9, atol=0)


def test_small_directions_keep_their_gradient():
    """Positive definite, of condition 1e8: the transport map between equal matrices is 1."""
    a = torch.diag(torch.tensor([1.0, 1e-8], dtype=F64)).requires_grad_()
    (got,) = torch.autograd.grad(ops.trace_sqrtm(a, a.detach()), a)
    torch.testing.assert_close(got, torch.eye(2, dtype=F64) / 2)


def test_float32_of_low_rank_keeps_the_block_of_infinite_derivative_at_0():
    v = low_rank(12, 4, 0).float()
    a = (v @ v.mT).requires_grad_()
    make = torch.Generator().manual_seed(0)
    (got,) = torch.autograd.grad((ops.sqrtm_psd(a) * torch.randn(12, 12, generator=make)).sum(), a)
    assert got.abs().max() < 1e3 / float(v.abs().max())


def test_unequal_singular_matrices_in_every_form():
    """One at a time, in a batch, and in float32, against the factors they are made of."""
    v, w = low_rank(60, 20, 0), low_rank(60, 45, 1)
    truth = torch.linalg.svdvals(v.mT @ w).sum()
    a, b = v @ v.mT, w @ w.mT
    alone, how = ops.trace_sqrtm(a[None], b[None], diagnostics=True)
    assert how.rank == (20, 45)
    torch.testing.assert_close(alone[0], truth, rtol=1e-8, atol=0)
    assert abs(float(ops.trace_sqrtm(a.float(), b.float())) - truth) < 2e-3 * truth


def test_the_polar_route_of_a_batch_and_of_nothing():
    c = torch.stack([torch.zeros(20, 30, dtype=F64), low_rank(20, 30, 0)])
    value, bound = polar.polar_trace(c)
    assert value[0] == 0 and bound[0] < 1e-12
    torch.testing.assert_close(value[1], torch.linalg.svdvals(c[1]).sum())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def fond_of_products(request, monkeypatch):
    """A device on which the polar route pays: a GPU, or a CPU that is told so."""
    if request.param == "cpu":
        monkeypatch.setattr(nuclear, "polar_pays", lambda c: True)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.mark.parametrize("exponent", [0, 3, 6, 12])
def test_the_polar_route_takes_whole_covariances(fond_of_products, exponent):
    q, values = orthogonal(512, 0), decades(512, exponent)
    other = values[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    a, b = ((q * v @ q.mT).to(fond_of_products) for v in (values, other))
    found, how = ops.trace_sqrtm(a, b, diagnostics=True)
    assert how.route == "polar"
    apart = abs(float(found) - float((values * other).sqrt().sum()))
    traces = float(values.sum() + other.sum())
    assert apart <= float(how.bound) + 1e-14 * traces <= 2e-10 * traces


@pytest.mark.parametrize(("rank_a", "rank_b"), [(300, 400), (300, 300), (512, 300), (40, 512)])
def test_singular_covariances_on_either_device(fond_of_products, rank_a, rank_b):
    v, w = low_rank(512, rank_a, 0), low_rank(512, rank_b, 1)
    a, b = (v @ v.mT).to(fond_of_products), (w @ w.mT).to(fond_of_products)
    assert error(a, b, torch.linalg.svdvals(v.mT @ w).sum().to(a)) < 1e-9


def test_gradients_where_the_value_is_found_by_products(fond_of_products):
    """Of tr (A A)^(1/2) by one of the arguments: half the identity."""
    a = spectrum(decades(300, 2), 0).to(fond_of_products)
    left = a.clone().requires_grad_()
    (got,) = torch.autograd.grad(ops.trace_sqrtm(left, a), left)
    torch.testing.assert_close(got, torch.eye(300).to(a) / 2, rtol=0, atol=1e-9)


def test_polynomials_bring_every_singular_value_to_1():
    for smallest in (1e-11, 1e-6, 1e-2):
        x = torch.logspace(math.log10(smallest), 0, 10_001, dtype=F64)
        for a, b, c in polar.schedule(smallest):
            x = a * x + b * x**3 + c * x**5
        assert (x - 1).abs().max() < 1e-14


def test_the_routes_agree():
    c = low_rank(90, 70, 0)
    want = torch.linalg.svdvals(c).sum()
    for route in (nuclear.by_eigenvalues, nuclear.by_polar_factor, nuclear.by_singular_values):
        found = route(c.mT)
        assert (found.value - want).abs() <= found.bound <= 1e-8 * want


@given(
    d=st.integers(1, 12),
    rank=st.integers(1, 12),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_the_root_squares_and_the_trace_is_symmetric(d, rank, scale, seed):
    make = torch.Generator().manual_seed(seed)
    v, w = (scale * torch.randn(d, rank, dtype=F64, generator=make) for _ in range(2))
    a, b = v @ v.mT, w @ w.mT
    root = ops.sqrtm_psd(a)
    torch.testing.assert_close(root @ root, a, rtol=1e-7, atol=1e-10 * float(a.trace()))
    assert torch.linalg.eigvalsh(root).min() >= -1e-12 * root.abs().max()
    both = [ops.trace_sqrtm(a, b), ops.trace_sqrtm(b, a)]
    assert (both[0] - both[1]).abs() <= 1e-9 * (a.trace() + b.trace())
    q = orthogonal(d, seed)
    turned = ops.trace_sqrtm(q @ a @ q.mT, q @ b @ q.mT)
    assert (both[0] - turned).abs() <= 1e-8 * (a.trace() + b.trace())
    assert 0 <= both[0] <= (a.trace() + b.trace()) / 2 * (1 + 1e-9)


def test_gradients_at_singular_matrices_follow_the_directions_that_keep_the_rank():
    v, w = low_rank(8, 3, 0), low_rank(8, 5, 1)
    for left, right in [(v, w), (w, v)]:
        left = left.clone().requires_grad_()
        root = ops.trace_sqrtm(left @ left.mT, right @ right.mT)
        (got,) = torch.autograd.grad(root, left)
        (want,) = torch.autograd.grad(torch.linalg.svdvals(left.mT @ right).sum(), left)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_gradients_at_singular_matrices_are_finite_and_0_where_the_derivative_is_not():
    a, b = (
        x.requires_grad_() for x in (torch.diag(torch.tensor([4.0, 0.0])).double(), torch.eye(2))
    )
    b = b.double()
    (ga,) = torch.autograd.grad(ops.trace_sqrtm(a, b), a)
    torch.testing.assert_close(ga, torch.tensor([[0.25, 0], [0, 0]], dtype=F64))
    (root,) = torch.autograd.grad(ops.sqrtm_psd(a).sum(), a)
    assert root.isfinite().all() and root[1, 1] == 0
    want = torch.func.grad(lambda x: ops.trace_sqrtm.reference(x, b.detach()))(a.detach())
    torch.testing.assert_close(ga, want)


def test_what_is_not_finite_stays_in_its_place():
    a = torch.eye(3).repeat(3, 1, 1)
    a[1, 0, 2] = torch.inf
    root, trace = ops.sqrtm_psd(a), ops.trace_sqrtm(a, a)
    assert root[1].isnan().all() and torch.equal(root[[0, 2]], a[[0, 2]])
    assert trace.isnan().tolist() == [False, True, False]


def test_float32_keeps_what_float64_finds():
    """A covariance stored in float32 has eigenvalues below 0 by its rounding."""
    a = spectrum(decades(200, 12), 0).float()
    assert torch.linalg.eigvalsh(a.double()).min() < 0
    root = ops.trace_sqrtm(a, a)
    torch.testing.assert_close(root, a.trace(), rtol=1e-5, atol=0)


def test_what_is_no_covariance_is_named_and_can_be_repaired():
    a = torch.diag(torch.tensor([1.0, -0.25], dtype=F64))
    for attempt in (
        lambda: ops.sqrtm_psd(a),
        lambda: ops.trace_sqrtm(a, torch.eye(2, dtype=F64)),
    ):
        with pytest.raises(ValueError, match=r"a must be positive .* -0.25, 0.25 of the largest"):
            attempt()
    with pytest.raises(ValueError, match="trace_sqrtm: b must be positive semi-definite"):
        ops.trace_sqrtm(torch.eye(2, dtype=F64), a)
    repaired = ops.project_psd(a)
    torch.testing.assert_close(repaired, torch.diag(torch.tensor([1.0, 0.0], dtype=F64)))
    torch.testing.assert_close(ops.sqrtm_psd(repaired), repaired)
    indefinite = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    with pytest.raises(ValueError, match="project_psd gives the nearest"):
        ops.trace_sqrtm(indefinite, indefinite)


BAD = [
    (lambda: ops.sqrtm_psd(torch.ones(2, 3)), ValueError, r"a must have shape \(..., d, d\)"),
    (lambda: ops.sqrtm_psd(torch.ones(2, 2).half()), TypeError, "a must have dtype float32, float"),
    (
        lambda: ops.trace_sqrtm(torch.eye(2), torch.eye(3)),
        ValueError,
        r"b must have the shape of a, \(2, 2\); got \(3, 3\)",
    ),
    (
        lambda: ops.trace_sqrtm(torch.eye(2), torch.eye(2).double()),
        TypeError,
        "b must have the dtyp",
    ),
    (lambda: ops.project_psd(torch.full((2, 2), torch.nan)), ValueError, "a must be finite"),
]


@pytest.mark.parametrize(("attempt", "kind", "sentence"), BAD)
def test_bad_arguments_are_named(attempt, kind, sentence):
    with pytest.raises(kind, match=sentence):
        attempt()
