"""Comparisons of sets of any scale and offset: each changes as its formula does, or not at all."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from fastlatent.metrics import (
    Neighbourhoods,
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    frechet_standard_error,
    kernel_distance,
    prd_curve,
    prd_f_beta,
)

F32, F64 = torch.float32, torch.float64
SCALES = [1e-30, 1e-4, 1e3, 1e8, 1e30]
EDGES = {F32: (1e-41, 1e37), F64: (1e-306, 1e305)}  # just within what the dtype holds


def pair(dtype, n=40, d=3, scale=1.0, offset=0.0):
    """The offset is in units of the spread."""
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, d, generator=make, dtype=F64)
    # To bits that an offset of 1e6 leaves in float64, so that the sets differ by the offset alone.
    x, y = ((part * 2**16).round() / 2**16 for part in (x, 0.8 * y + 0.4))
    return tuple(((offset + part) * scale).to(dtype) for part in (x, y))


# --- kernel distance -----------------------------------------------------------------------------


def exact_discrepancy(x, y, degree, paired):
    """In fractions, of the kernel (x.y / d + 1)^degree."""
    x, y = ([[Fraction(v) for v in row] for row in part.tolist()] for part in (x, y))

    def k(a, b):
        return (sum(map(Fraction.__mul__, a, b)) / len(a) + 1) ** degree

    apart = list(itertools.permutations(range(len(x)), 2))
    own = sum(k(part[i], part[j]) for part in (x, y) for i, j in apart) / len(apart)
    both = apart if paired else itertools.product(range(len(x)), repeat=2)
    across = [k(x[i], y[j]) for i, j in both]
    return float(own - 2 * sum(across) / len(across))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("degree", [1, 3, 4])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("scale", "offset"), [(1, 0), *((s, 0) for s in SCALES), (1, 1e3), (1, 1e6), (1e8, -1e4)]
)
def test_kernel_distance_is_its_formula_at_any_scale_and_offset(
    dtype, degree, paired, scale, offset
):
    x, y = pair(dtype, 8, 3, scale, offset)
    found = kernel_distance(x, y, None, degree=degree, paired=paired)
    want = exact_discrepancy(x, y, degree, paired)
    assert found.value == pytest.approx(want, rel=1e-4 if dtype == F32 else 1e-9)
    assert 0.05 * abs(want) < found.error < 5 * abs(want)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("subsets", [None, 5])
def test_a_homogeneous_kernel_has_a_distance_and_an_error_that_scale(dtype, subsets):
    options = {"subsets": subsets, "subset_size": 20, "coef0": 0.0}
    plain = kernel_distance(*pair(dtype), **options)
    for scale in SCALES:
        moved = kernel_distance(*pair(dtype, scale=scale), **options)
        for name in ("value", "error", "deviation"):
            want = getattr(plain, name) * scale**6
            assert getattr(moved, name) == pytest.approx(want, rel=2e-4), (name, scale)


@pytest.mark.parametrize("paired", [False, True])
def test_a_linear_kernel_knows_no_offset(paired):
    plain = kernel_distance(*pair(F64), degree=1, paired=paired)
    for dtype, offset, close in ((F32, -3.0, 1e-5), (F32, 1e3, 1e-3), (F64, 1e6, 1e-9)):
        moved = kernel_distance(*pair(dtype, offset=offset), degree=1, paired=paired)
        assert moved[:2] == pytest.approx(plain[:2], rel=close)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_error_far_from_0_is_that_of_the_linear_and_quadratic_part(dtype):
    """An offset of 1,000 spreads leaves of (1 + x.y / d)^3 what is at most linear in x and in y."""
    make = torch.Generator().manual_seed(3)
    found = []
    for _ in range(100):
        x, y = torch.randn(2, 40, 3, generator=make, dtype=F64)
        sets = ((1000 + part).to(dtype) for part in (x, y + 0.3))
        found.append(kernel_distance(*sets, None)[:2])
    values, errors = torch.tensor(found, dtype=F64).T
    assert 0.8 < float(errors.square().mean().sqrt() / values.std()) < 1.25  # known to 7 %


def test_what_overflows_is_infinite_and_what_is_equal_is_0():
    x, y = pair(F64, scale=1e200)
    assert kernel_distance(x, y)[:2] == (math.inf, math.inf)
    assert kernel_distance(x, x.clone(), paired=True)[:2] == (0, 0)
    assert kernel_distance(*pair(F64, scale=1e-306))[:2] == (0, 0)
    one = torch.full((9, 2), 1e6)
    assert kernel_distance(one, one)[:2] == kernel_distance(0 * one, 0 * one)[:2] == (0, 0)
    for name in ("gamma", "coef0"):
        with pytest.raises(ValueError, match=f"^kernel_distance: {name} must be finite; got nan"):
            kernel_distance(x, y, **{name: math.nan})


# --- neighbourhoods ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_neighbourhoods_know_no_scale(dtype):
    def measured(scale):
        near = Neighbourhoods(*pair(dtype, scale=scale), realism=True)
        estimates = [*near.precision_recall(3), *near.density_coverage(5)]
        return [number for estimate in estimates for number in estimate], near.realism(3)

    numbers, deepest = measured(1.0)
    assert min(numbers) > 0
    for scale in (2.0**-100, 2.0**30, 2.0**100, *(2.0 ** int(math.log2(s)) for s in EDGES[dtype])):
        moved, realism = measured(scale)
        slack = 1e-9 if scale > 2.0**-120 or dtype == F64 else 0.1  # subnormal numbers are rounded
        assert moved == pytest.approx(numbers, rel=slack)
        torch.testing.assert_close(realism, deepest, rtol=slack, atol=0)


def test_neighbourhoods_know_no_offset():
    near = [Neighbourhoods(*pair(F64, offset=offset)) for offset in (0.0, -1e3, 1e6)]
    first, *others = ([*n.precision_recall(3), *n.density_coverage(5)] for n in near)
    assert all(other == first for other in others)


# --- Frechet distance ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("n", "d"), [(40, 3), (10, 20)])
def test_frechet_distances_and_errors_grow_with_the_square_of_the_scale(dtype, n, d):
    def measured(scale):
        x, y = pair(dtype, n, d, scale)
        moments = (x.double().mean(0), x.double().T.cov(), y.double().mean(0), y.double().T.cov())
        return [
            float(frechet_from_features(x, y)),
            float(frechet_distance(*moments)),
            float(frechet_standard_error(x, y)),
            *frechet_infinity(x, y, 5)[:2],
        ]

    plain = measured(1.0)
    for scale in (*SCALES, 1e37, 1e-37):
        want = [value * scale**2 for value in plain]
        assert measured(scale) == pytest.approx(want, rel=1e-5 if dtype == F32 else 1e-9)


def test_frechet_distances_and_errors_know_no_offset():
    plain, moved = (pair(F64, offset=offset) for offset in (0.0, 1e6))
    for measure in (frechet_from_features, frechet_standard_error):
        assert float(measure(*moved)) == pytest.approx(float(measure(*plain)), rel=1e-9)


# --- curves of precision and recall --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_curves_know_no_scale_and_no_offset(dtype):
    def measured(scale, offset=0.0):
        return prd_curve(*pair(dtype, 60, 3, scale, offset), angles=51, runs=2)

    plain = measured(1.0)
    assert prd_f_beta(plain).recall.value < 0.99
    for scale in (1e-30, 1e20, EDGES[dtype][1]):
        exact = 2.0 ** int(math.log2(scale))
        for part, same in zip(plain, measured(exact), strict=True):
            assert torch.equal(part, same)
    # Features in eighths, which an offset leaves as they are.
    x, y = ((8 * part).round() / 8 for part in pair(dtype, 60))
    for offset in (1e3, 1e6):
        assert torch.equal(prd_curve(x, y, runs=1)[0], prd_curve(x + offset, y + offset, runs=1)[0])
