"""B-splines: exact values, invariances and continuity; polylines: closed forms; bad arguments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlatent.ops import (
    OPS,
    bspline,
    insert_knot,
    insertion_matrix,
    polyline_energy,
    polyline_length,
    uniform_knots,
)

F64 = torch.float64
quick = settings(max_examples=40, deadline=None)


def random(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_knots(k, degree, *batch, seed=0):
    """Clamped knots on [0, 1] with distinct, unequally spaced ones between."""
    make = torch.Generator().manual_seed(seed)
    steps = torch.rand(*batch, k - degree, generator=make, dtype=F64) + 0.2
    inner = (steps.cumsum(-1) / steps.sum(-1, keepdim=True))[..., :-1]
    zeros, ones = inner.new_zeros(*batch, degree + 1), inner.new_ones(*batch, degree + 1)
    return torch.cat([zeros, inner, ones], -1)


def basis(t, knots, degree=3, order=0):
    """(m, k): the values of all basis functions."""
    k = len(knots) - degree - 1
    return bspline(torch.eye(k, dtype=knots.dtype)[None], t, knots, degree, order)[0]


def degrees_and_sizes():
    return st.integers(1, 7).flatmap(
        lambda degree: st.tuples(st.just(degree), st.integers(degree + 1, degree + 12))
    )


def test_basis_values_of_the_definition():
    knots = torch.tensor([0, 0, 0, 0, 0.5, 1, 1, 1, 1], dtype=F64)
    t = torch.tensor([0.3, 0.5, 0, 1], dtype=F64)
    values = [[0.064, 0.558, 0.324, 0.054, 0], [0, 0.25, 0.5, 0.25, 0], [1, 0, 0, 0, 0]]
    values.append([0, 0, 0, 0, 1])
    want = torch.tensor(values, dtype=F64)
    torch.testing.assert_close(basis(t, knots), want, rtol=0, atol=1e-15)
    slopes = torch.tensor([[-0.96, -1.02, 1.44, 0.54, 0]], dtype=F64)
    torch.testing.assert_close(basis(t[:1], knots, order=1), slopes, rtol=0, atol=1e-15)
    ends = torch.tensor([[-6, 6, 0, 0, 0], [0, 0, 0, -6, 6]], dtype=F64)
    torch.testing.assert_close(basis(t[2:], knots, order=1), ends, rtol=0, atol=1e-14)


@given(size=degrees_and_sizes(), seed=st.integers(0, 2**16))
@quick
def test_partition_of_unity(size, seed):
    degree, k = size
    knots = random_knots(k, degree, seed=seed)
    t = torch.cat([torch.linspace(0, 1, 1001, dtype=F64), knots])
    values = basis(t, knots, degree)
    assert (values >= 0).all()
    torch.testing.assert_close(values.sum(1), torch.ones_like(t), rtol=0, atol=1e-12)
    slopes = basis(t, knots, degree, 1)
    scale = float(slopes.abs().max())
    torch.testing.assert_close(slopes.sum(1), torch.zeros_like(t), rtol=0, atol=1e-13 * scale)


def test_a_knot_belongs_to_one_span_only():
    knots = random_knots(9, 3)
    inner = knots[4:-4]
    assert (basis(inner, knots, order=3) == basis(inner + 1e-9, knots, order=3)).all()
    before = basis(inner - 1e-9, knots, order=3)
    assert not torch.isclose(basis(inner, knots, order=3), before).all(1).any()
    last = basis(knots[-1:], knots, order=3)
    torch.testing.assert_close(last, basis(knots[-1:] - 1e-9, knots, order=3))


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 12, 31])
def test_one_span_is_a_bezier_curve(degree):
    t = torch.linspace(0, 1, 201, dtype=F64)
    control = random(2, degree + 1, 3)

    def bernstein(m):
        powers = torch.arange(m + 1, dtype=F64)
        binomials = torch.tensor([math.comb(m, i) for i in range(m + 1)], dtype=F64)
        return binomials * t[:, None] ** powers * (1 - t[:, None]) ** (m - powers)

    torch.testing.assert_close(
        bspline(control, t, degree=degree), bernstein(degree) @ control, rtol=0, atol=1e-12
    )
    slope = degree * bernstein(degree - 1) @ control.diff(dim=1)
    torch.testing.assert_close(
        bspline(control, t, degree=degree, order=1), slope, rtol=0, atol=1e-12 * degree
    )


@given(size=degrees_and_sizes(), seed=st.integers(0, 2**16))
@quick
def test_greville_points_make_a_straight_line(size, seed):
    degree, k = size
    knots = random_knots(k, degree, seed=seed)
    greville = knots[1:-1].unfold(0, degree, 1).mean(-1)
    start, end = random(2, 1, 1, 5, seed=seed)
    control = start + greville[:, None] * (end - start)
    t = torch.linspace(0, 1, 101, dtype=F64)
    line = start + t[:, None] * (end - start)
    torch.testing.assert_close(bspline(control, t, knots, degree), line, rtol=0, atol=1e-12)
    slope = (end - start).expand(1, 101, 5)
    torch.testing.assert_close(bspline(control, t, knots, degree, 1), slope, rtol=0, atol=1e-11)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_continuity_at_simple_knots(degree):
    """All derivatives below the degree have the same limits from both sides; that one jumps."""
    knots = random_knots(12, degree)
    control = random(3, 12, 4)
    at = knots[degree + 1 : -degree - 1]
    below = torch.nextafter(at, torch.zeros_like(at))
    for order in range(degree):
        left, right = (bspline(control, t, knots, degree, order) for t in (below, at))
        size = float(right.abs().max())
        torch.testing.assert_close(left, right, rtol=0, atol=1e-9 * size)
    left, right = (bspline(control, t, knots, degree, degree) for t in (below, at))
    assert (left - right).abs().amax((0, 2)).min() > 1e-3


@given(size=degrees_and_sizes(), seed=st.integers(0, 2**16))
@quick
def test_batch_is_loop(size, seed):
    degree, k = size
    control = random(5, k, 3, seed=seed)
    knots = random_knots(k, degree, 5, seed=seed)
    t = torch.rand(5, 9, generator=torch.Generator().manual_seed(seed), dtype=F64)
    order = seed % (degree + 1)
    for some_t in (t, t[0]):
        for some_knots in (knots, knots[0]):
            got = bspline(control, some_t, some_knots, degree, order)
            for i in range(5):
                one_t = some_t[i] if some_t.dim() == 2 else some_t
                one_knots = some_knots[i] if some_knots.dim() == 2 else some_knots
                want = bspline(control[i : i + 1], one_t, one_knots, degree, order)
                torch.testing.assert_close(got[i : i + 1], want, rtol=1e-12, atol=1e-12)


def test_derivatives_follow_from_each_other():
    """The derivative by t through autograd is the next order; order + 1 beyond the degree is 0."""
    control, knots = random(4, 9, 3), random_knots(9, 3)
    t = torch.linspace(0.01, 0.99, 33, dtype=F64).expand(4, 33).clone().requires_grad_()
    for order in range(4):
        out = bspline(control, t, knots, 3, order)
        for c in range(3):
            (slope,) = torch.autograd.grad(out[..., c].sum(), t, retain_graph=True)
            if order == 3:
                assert not slope.any()
                continue
            want = bspline(control, t.detach(), knots, 3, order + 1)[..., c]
            torch.testing.assert_close(slope, want, rtol=0, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_insertion_does_not_move_the_curve(dtype):
    control, knots = random(6, 4, 16, dtype=dtype), uniform_knots(4, dtype=dtype)
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    before, original = bspline(control, t, knots), (control, knots)
    inserted = [1 / 2, 1 / 4, 3 / 4, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1 / 16]
    for u in inserted:
        control, knots = insert_knot(control, knots, u)
        change = (bspline(control, t, knots) - before).abs().max()
        assert change < (1e-12 if dtype == F64 else 1e-6)
    at_once = insert_knot(*original, torch.tensor(inserted, dtype=dtype))
    torch.testing.assert_close(at_once, (control, knots))
    matrix = insertion_matrix(original[1], torch.tensor(inserted, dtype=dtype))
    torch.testing.assert_close(matrix @ original[0], control)


@given(size=degrees_and_sizes(), seed=st.integers(0, 2**16))
@quick
def test_insertion_matrices_take_means(size, seed):
    degree, k = size
    knots = random_knots(k, degree, 3, seed=seed)
    u = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=F64) * 0.9 + 0.05
    matrix = insertion_matrix(knots, u, degree)
    assert matrix.shape == (3, k + 2, k) and (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(-1), matrix.new_ones(3, k + 2), rtol=0, atol=1e-14)
    control, t = random(3, k, 2, seed=seed), torch.linspace(0, 1, 50, dtype=F64)
    more, more_knots = insert_knot(control, knots, u)
    torch.testing.assert_close(matrix @ control, more, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        bspline(more, t, more_knots, degree), bspline(control, t, knots, degree), rtol=0, atol=1e-11
    )


def test_insertion_into_one_cubic_span():
    rows = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1]]
    matrix = insertion_matrix(uniform_knots(4, dtype=F64), 0.5)
    assert torch.equal(matrix, torch.tensor(rows, dtype=F64))


def test_insertion_is_differentiable():
    control, knots = random(2, 5, 2).requires_grad_(), random_knots(5, 2, 2)
    u = torch.tensor([[0.3, 0.62], [0.81, 0.17]], dtype=F64)
    assert torch.autograd.gradcheck(lambda c: insert_knot(c, knots, u)[0], control)
    cubed = lambda c: insert_knot(c, knots, u)[0] ** 3  # noqa: E731
    assert torch.autograd.gradgradcheck(cubed, control)


@pytest.mark.parametrize(
    ("knots", "u"),
    [
        (random_knots(6, 3), 0.4),
        (random_knots(6, 3), torch.tensor([0.9, 0.4], dtype=F64)),
        (random_knots(6, 3, 3), torch.tensor([0.4, 0.1, 0.8], dtype=F64)),
    ],
)
def test_insertion_compiles_into_one_graph(knots, u):
    control = random(3, 6, 2)
    run = lambda control, knots: (  # noqa: E731
        *insert_knot(control, knots, u),
        insertion_matrix(knots, u),
    )
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(control, knots), run(control, knots))


def test_insertion_under_transforms():
    """Mapped over curves with a knot vector and a place each, and over their derivatives."""
    control, knots = random(4, 6, 2), random_knots(6, 3, 4)
    u = torch.tensor([[0.3, 0.62], [0.81, 0.17], [0.5, 0.9], [0.44, 0.2]], dtype=F64)
    want = insert_knot(control, knots, u)

    def one(control, knots, u):
        more, more_knots = insert_knot(control[None], knots, u)
        return more[0], more_knots

    torch.testing.assert_close(torch.vmap(one)(control, knots, u), want)
    tangent = random(4, 6, 2, seed=1)
    slope = torch.vmap(lambda c, v, k, u: torch.func.jvp(lambda c: one(c, k, u)[0], (c,), (v,))[1])(
        control, tangent, knots, u
    )
    torch.testing.assert_close(slope, insert_knot(tangent, knots, u)[0])
    matrix = torch.vmap(torch.func.jacrev(lambda c, k, u: one(c, k, u)[0][:, 0]))(control, knots, u)
    torch.testing.assert_close(matrix[..., 0], insertion_matrix(knots, u))
    at_a_number = torch.vmap(lambda k: insertion_matrix(k, 0.35))(knots)
    torch.testing.assert_close(at_a_number, insertion_matrix(knots, 0.35))


def test_default_knots_are_uniform():
    want = torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert torch.equal(uniform_knots(6, 2), want)
    control, t = random(2, 6, 3, dtype=torch.float32), torch.linspace(0, 1, 11)
    assert torch.equal(bspline(control, t, degree=2), bspline(control, t, want, 2))


def test_gradients_are_those_of_the_basis_matrix():
    """In float32 at the size of the benchmark, against a dense product in float64."""
    control, t = random(64, 20, 2, dtype=torch.float32), torch.linspace(0, 1, 64)
    knots, upstream = uniform_knots(20), random(64, 64, 2, seed=1, dtype=torch.float32)
    leaf = control.clone().requires_grad_()
    out = bspline(leaf, t, knots)
    (got,) = torch.autograd.grad(out, leaf, upstream)
    matrix = basis(t.double(), knots.double())
    torch.testing.assert_close(out.double(), matrix @ control.double(), rtol=0, atol=2e-6)
    torch.testing.assert_close(got.double(), matrix.mT @ upstream.double(), rtol=0, atol=4e-6)


def test_only_needed_gradients_are_computed():
    control, t = random(3, 5, 2), torch.linspace(0, 1, 7, dtype=F64)
    for which in ("control", "t"):
        args = {"control": control.clone(), "t": t.clone()}
        args[which].requires_grad_()
        bspline(**args).sum().backward()
        assert args[which].grad is not None and args[which].grad.any()


@pytest.mark.parametrize("segments", [1, 8, 64])
def test_polyline_of_a_quarter_arc(segments):
    """T equal chords of a unit quarter circle: length 2T sin(pi / (4T)), energy its square."""
    angle = torch.linspace(0, math.pi / 2, segments + 1, dtype=F64)
    arc = torch.stack([angle.cos(), angle.sin()], -1)[None]
    want = 2 * segments * math.sin(math.pi / (4 * segments))
    assert polyline_length(arc).item() == pytest.approx(want, rel=1e-14)
    assert polyline_energy(arc).item() == pytest.approx(want**2, rel=1e-13)


@given(
    n=st.integers(0, 4),
    m=st.integers(1, 20),
    dimension=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
@quick
def test_energy_bounds_length(n, m, dimension, seed):
    points = random(n, m, dimension, seed=seed)
    length, energy = polyline_length(points), polyline_energy(points)
    assert (length.square() <= energy * (1 + 1e-12)).all()
    chords = points.diff(dim=1)
    torch.testing.assert_close(length, chords.norm(dim=-1).sum(-1))
    torch.testing.assert_close(energy, (m - 1) * chords.square().sum((1, 2)))
    turned = points.flip(1) + 3
    torch.testing.assert_close(polyline_length(turned), length)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_segments_without_length_pull_nowhere(dtype):
    points = random(2, 9, 21, dtype=dtype)
    points[0, 4] = points[0, 3]
    points[1] = points[1, :1]
    points.requires_grad_()
    (got,) = torch.autograd.grad(polyline_length(points).sum(), points)
    assert not got[1].any()
    away = torch.nn.functional.normalize(points[0].diff(dim=0), dim=-1).detach()
    torch.testing.assert_close(got[0, 4], -away[4])
    torch.testing.assert_close(got[0, 3], away[2])
    with_none = torch.autograd.functional.hessian(
        lambda p: polyline_length(p).sum(), points.detach()
    )
    assert with_none.isfinite().all()


def test_lengths_of_close_points_keep_their_digits():
    """Chords are differences: a common offset that float32 holds exactly changes nothing."""
    points = torch.randint(-8, 8, (3, 40, 784), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(polyline_length(points), polyline_length(points + 4096))


CONTROL = torch.zeros(2, 6, 3)
T = torch.linspace(0, 1, 5)
BAD = [
    (lambda: bspline(CONTROL[0], T), ValueError, "bspline: control must have 3 dimensions"),
    (lambda: bspline(CONTROL.half(), T), TypeError, "control must have dtype float32, float64"),
    (lambda: bspline(CONTROL, T.double()), TypeError, "t must have the dtype of control, float32"),
    (lambda: bspline(CONTROL, T.expand(3, 5)), ValueError, r"t must have shape \(m,\) or \(n, m\)"),
    (lambda: bspline(CONTROL, T, degree=0), ValueError, "degree must be in 1 to 31; got 0"),
    (lambda: bspline(CONTROL, T, degree=6), ValueError, "at least 7 control points; got 6"),
    (lambda: bspline(CONTROL, T, order=4), ValueError, "order must be in 0 to degree, 3; got 4"),
    (lambda: bspline(CONTROL, T, T), ValueError, r"knots must have shape \(10,\) or \(2, 10\)"),
    (
        lambda: bspline(CONTROL, T, uniform_knots(6).requires_grad_()),
        ValueError,
        "knots must not require gradients",
    ),
    (lambda: uniform_knots(3), ValueError, "uniform_knots: .* at least 4 control points; got 3"),
    (lambda: insert_knot(CONTROL, uniform_knots(5)[:7], 0.5), ValueError, "degree at least 1"),
    (
        lambda: insert_knot(CONTROL, uniform_knots(6), T[None]),
        ValueError,
        r"u must be a number, \(r,\) with shared knots",
    ),
    (lambda: insert_knot(CONTROL, uniform_knots(6), 1.0), ValueError, "strictly between"),
    (lambda: insert_knot(CONTROL, uniform_knots(6), math.nan), ValueError, "strictly between"),
    (lambda: insertion_matrix(uniform_knots(6), 1 / 3), ValueError, "a doubled knot is refused"),
    (
        lambda: insert_knot(CONTROL, uniform_knots(6), torch.tensor([0.3, 0.3])),
        ValueError,
        "a doubled knot is refused",
    ),
    (lambda: insertion_matrix(uniform_knots(6), 0.3, 5), ValueError, "insertion_matrix: knots"),
    (lambda: polyline_length(CONTROL[0]), ValueError, "points must have 3 dimensions"),
    (lambda: polyline_energy(CONTROL[:, :0]), ValueError, "at least one point"),
    (lambda: polyline_energy(CONTROL.int()), TypeError, "polyline_energy: points must have dtype"),
]


@pytest.mark.parametrize(("attempt", "error", "sentence"), BAD)
def test_bad_arguments_are_named(attempt, error, sentence):
    with pytest.raises(error, match=sentence):
        attempt()


@pytest.fixture
def cpp():
    if OPS["bspline"].serving("cpu").implementation != "cpp":
        pytest.skip("values are checked inside the C++ kernel")


def changed(x, *changes):
    x = x.clone()
    for at, value in changes:
        x[at] = value
    return x


KNOTS = uniform_knots(6)
WRONG_VALUES = [
    (T, changed(KNOTS, (5, 1 / 3)), "knot 5 does not: a doubled knot is refused"),
    (T, changed(KNOTS, (4, 0.7)), "knots must increase between the ends; knot 5 does not"),
    (T, changed(KNOTS, (5, math.nan)), "knots must increase between the ends; knot 5 does not"),
    (T, torch.zeros(10), "knots must increase between the ends; knot 4 does not"),
    (T, changed(KNOTS, (0, -1)), "start with degree .* ones, here 4, and end with as many"),
    (T, changed(KNOTS, (-1, 2)), "start with degree .* ones, here 4, and end with as many"),
    (T, changed(KNOTS.expand(2, 10), ((1, 4), 0)), "knot 4 of curve 1 does not"),
    (changed(T, (3, 1.5)), KNOTS, "last knot, 0 and 1; element 3 is 1.5"),
    (changed(T, (0, -0.25)), KNOTS, "last knot, 0 and 1; element 0 is -0.25"),
    (changed(T.expand(2, 5), ((1, 2), 7)), KNOTS, "element 2 of curve 1 is 7"),
    (torch.linspace(0, 2, 100), KNOTS, "last knot, 0 and 1; element 50 is 1.0101"),
]


@pytest.mark.parametrize(("t", "knots", "sentence"), WRONG_VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_wrong_values_are_named(cpp, t, knots, sentence, dtype):
    with pytest.raises(ValueError, match=f"bspline: .*{sentence}"):
        bspline(CONTROL.to(dtype), t.to(dtype), knots.to(dtype))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda raw: raw.bspline(CONTROL, T, KNOTS[:8], 3, 0),
        lambda raw: raw.bspline(CONTROL, T, KNOTS, 2, 0),
        lambda raw: raw.bspline(CONTROL, T.double(), KNOTS, 3, 0),
        lambda raw: raw.bspline(CONTROL, T.expand(3, 5), KNOTS, 3, 0),
        lambda raw: raw.bspline(CONTROL, T, KNOTS, 3, 4),
        lambda raw: raw.bspline(torch.zeros(2, 40, 3), T, uniform_knots(42, 31), 33, 0),
        lambda raw: raw.bspline_backward(torch.zeros(2, 4, 3), T, KNOTS, 3, 0),
        lambda raw: raw.polyline_length(CONTROL.half()),
        lambda raw: raw.polyline_energy_backward(torch.zeros(1), CONTROL),
    ],
)
def test_the_core_protects_its_memory(cpp, attempt):
    with pytest.raises(ValueError, match="core: "):
        attempt(torch.ops.fastlatent)
