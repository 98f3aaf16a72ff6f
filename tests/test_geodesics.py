"""The solver of shorter curves, on surfaces whose geodesics are known and on trained decoders."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifolds import (
    flat_torus,
    half_plane,
    paraboloid,
    paraboloid_distance,
    points,
    sphere,
    swiss_distance,
    swiss_roll,
    torus,
)
from memory import allocated
from torch import Tensor, nn
from trained_decoders import bigan

from fastlatent.geometry import (
    Curves,
    MetricField,
    Status,
    curve_length,
    distance_matrix,
    geodesic,
    graph_curves,
    midpoint,
    straight,
)

A, B = points([1.0, 0.0]), points([0.0, 1.0])
FINE = {"segments": 64, "tolerance": 1e-10, "length_rtol": 1e-8, "max_iterations": 60}


def decoder(seed=0, d=3, features=20):
    """A smooth random network, float64."""
    make = torch.Generator().manual_seed(seed)
    first = torch.randn(d, 32, generator=make, dtype=torch.float64)
    second = torch.randn(32, features, generator=make, dtype=torch.float64) / 6
    return lambda z: torch.tanh(z @ first.to(z.dtype)) @ second.to(z.dtype)


def random_pairs(n, d=3, seed=1, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=make, dtype=torch.float64).to(dtype).unbind(0)


# The excess over pi / 2 that a spline of so many pieces cannot avoid.
@pytest.mark.parametrize(("spans", "excess"), [(1, 6.5e-5), (2, 3.7e-6), (4, 8e-8), (8, 1e-8)])
def test_quarter_of_a_great_circle(spans, excess):
    found = geodesic(sphere, A, B, spans=(spans,), **FINE)
    assert float(found.straight_length) == pytest.approx(1.7100664402, abs=1e-8)
    assert -1e-9 < float(found.length) - math.pi / 2 < excess * 1.05
    assert float(found.improvement) == pytest.approx(0.081441, abs=1e-4)
    assert int(found.iterations) <= 15
    assert found.converged.all()
    assert float(found.energy) == pytest.approx(
        (128 * math.sin(math.pi / 256)) ** 2, rel=2 * excess
    )
    assert float(found.energy) == pytest.approx(2.4674011003, rel=2e-4)


def test_far_pair_on_the_sphere():
    found = geodesic(sphere, A, points([-0.9, 0.3]), spans=(8,), **FINE)
    assert float(found.straight_length) == pytest.approx(3.0026503807, abs=1e-6)
    assert float(found.length) == pytest.approx(2.8157096964, abs=1e-6)
    assert int(found.iterations) <= 30


def test_swiss_roll():
    a = points([1.0, 0.0], [2.0, 0.0], [0.5, -1.0])
    b = points([4.0, 3.0], [2.0, 5.0], [9.0, 4.0])
    found = geodesic(swiss_roll, a, b, spans=(1, 4, 8), **FINE)
    want = swiss_distance(a, b)
    torch.testing.assert_close(want, torch.tensor([8.6806470523, 5.0, 41.9747030776]).double())
    straight_lengths = torch.tensor([8.7235241391, 5.0, 42.0855742612]).double()
    torch.testing.assert_close(found.straight_length, straight_lengths, rtol=1e-6, atol=0)
    error = (found.length - want).abs()
    assert error[0] < 2e-6 and error[1] < 1e-9 and error[2] < 2e-4
    assert found.iterations[1] == 0
    assert found.converged[1]


@pytest.mark.parametrize(("spans", "spread"), [(4, 3e-2), (16, 1e-3)])
def test_torus_follows_clairaut(spans, spread):
    found = geodesic(torus, points([0.0, 0.3]), points([1.5, 1.2]), spans=(1, spans), **FINE)
    assert float(found.straight_length) == pytest.approx(4.1597997, abs=1e-6)
    assert float(found.length) == pytest.approx(3.8770769, abs=1e-3 if spans == 4 else 1e-5)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    (_, v), (du, dv) = found.curves.points(t)[0].T, found.curves.derivative(t)[0].T
    momentum = (2 + v.cos()).square() * du
    speed = ((2 + v.cos()).square() * du.square() + dv.square()).sqrt()
    clairaut = momentum / speed.mean()
    assert (clairaut.max() - clairaut.min()) / clairaut.mean() < spread
    if spans == 16:
        assert (speed.max() - speed.min()) / speed.mean() < spread


def test_surface_of_revolution():
    """On the paraboloid r^2 du stays constant along a geodesic, u the angle around the axis."""
    a, b = points([1.5, 0.0]), points([-0.8, 1.0])
    found = geodesic(paraboloid, a, b, spans=(1, 4, 16), **FINE)
    assert float(found.length) == pytest.approx(paraboloid_distance(a[0], b[0]), abs=1e-5)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    z, dz = found.curves.points(t)[0], found.curves.derivative(t)[0]
    momentum = z[:, 0] * dz[:, 1] - z[:, 1] * dz[:, 0]
    assert (momentum.max() - momentum.min()) / momentum.mean().abs() < 5e-3
    assert float(found.improvement) > 0.01


@pytest.mark.parametrize("isometry", [flat_torus, lambda z: z @ z.new_tensor([[1.0, 2], [0, 3]])])
def test_flat_charts_keep_the_straight_line(isometry):
    a, b = random_pairs(5, 2)
    found = geodesic(isometry, a, b)
    assert (found.iterations == 0).all() and found.converged.all()
    assert (found.improvement.abs() < 1e-12).all()


def test_linear_decoder_from_a_detour():
    """Newton's method on a quadratic: a few steps from anywhere."""
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    a, b = random_pairs(6, 4)
    detour = straight(a, b, 4)
    detour.control[:, 1:-1] += torch.randn_like(detour.control[:, 1:-1])
    found = geodesic(lambda z: z @ weight, a, b, spans=(4,), first=detour, **FINE)
    want = ((b - a) @ weight).norm(dim=1)
    torch.testing.assert_close(found.length, want, rtol=0, atol=1e-9)
    assert (found.iterations <= 5).all()


def test_half_plane_by_its_metric():
    found = geodesic(
        MetricField(half_plane), points([0.0, 1.0]), points([2.0, 1.0]), spans=(1, 4, 8), **FINE
    )
    assert float(found.straight_length) == pytest.approx(2, abs=1e-6)
    assert float(found.length) == pytest.approx(1.7627471740, abs=3e-6)


def test_both_directions_agree_on_the_sphere():
    a, b = random_pairs(8, 2)
    there, back = (geodesic(sphere, *ends, spans=(8,), **FINE) for ends in ((a, b), (b, a)))
    torch.testing.assert_close(there.length, back.length, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["lbfgs", "adam", "original"])
def test_never_longer_than_the_straight_line(method):
    a, b = random_pairs(12)
    found = geodesic(decoder(), a, b, method)
    curves, lines = (
        curve_length(decoder(), *shape, rtol=1e-7).length
        for shape in ((found.control, found.knots), (straight(a, b).control,))
    )
    if method != "original":  # which judges by a sum of its own
        assert (curves <= lines).all()
        assert (found.improvement >= 0).all()
        assert found.improvement.mean() > 0.05
        assert (found.energy_excess > -1e-3).all()
        assert (found.history[1:] <= found.history[:-1]).all()
    torch.testing.assert_close(found.length, curves, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.straight_length, lines, rtol=1e-3, atol=0)
    assert torch.equal(found.curves.start, a) and torch.equal(found.curves.end, b)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_the_limit_on_iterations(method):
    a, b = random_pairs(6)
    for limit in (1, 4):
        options = {"segments": 64, "tolerance": 1e-14, "max_iterations": limit}
        found = geodesic(decoder(), a, b, method, spans=(2,), **options)
        assert (found.status == Status.MAX_ITERATIONS).all()
        assert (found.iterations == limit).all()
    done = geodesic(decoder(), a, b, method, spans=(2,), tolerance=0.1, max_iterations=50)
    assert done.converged.all() and (done.iterations < 50).all()


def test_excess_energy_is_how_uneven_the_speed_is():
    """The variance of the speed over the square of its mean."""
    a, b = random_pairs(4)
    found = geodesic(lambda z: z, a, b, "original")
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    speed = found.curves.derivative(t).norm(dim=2)
    uneven = speed.var(1, correction=0) / speed.mean(1).square()
    assert (uneven > 1e-3).any()
    torch.testing.assert_close(found.energy_excess, uneven, rtol=0.05, atol=1e-3)
    assert geodesic(sphere, A, A).energy_excess.isnan().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_length_is_never_below_a_known_geodesic(seed, n):
    """The angle between two points of the sphere bounds every curve between them."""
    a, b = random_pairs(n, 2, seed)
    found = geodesic(sphere, a, b)
    angle = (sphere(a) * sphere(b)).sum(1).clamp(-1, 1).acos()
    assert (found.length >= angle - found.length_error - 1e-7).all()
    assert (found.length <= found.straight_length).all()


def test_ours_is_shorter_than_the_original_finds():
    a, b = random_pairs(10)
    ours, theirs = geodesic(decoder(), a, b), geodesic(decoder(), a, b, "original", seed=3)
    assert (ours.length < theirs.length).all()
    assert ours.length.mean() < 0.995 * theirs.length.mean()


def test_the_original_keeps_its_own_score():
    """Its history is by its own sum, which is too long by 16 / 15 on a flat surface."""
    found = geodesic(lambda z: z, A, B, "original")
    assert found.history.shape == (5, 1)
    assert float(found.history[0]) == pytest.approx(math.sqrt(2) * 16 / 15, rel=1e-4)
    assert (found.history[1:] <= found.history[:-1]).all()
    assert float(found.straight_length) == pytest.approx(math.sqrt(2), rel=1e-6)
    same = geodesic(decoder(), *random_pairs(3), "original", seed=5).control
    again = geodesic(decoder(), *random_pairs(3), "original", seed=5).control
    assert torch.equal(same, again)
    assert not torch.equal(same, geodesic(decoder(), *random_pairs(3), "original", seed=6).control)


def test_the_original_does_not_depend_on_chunks():
    a, b = random_pairs(6)
    whole = geodesic(decoder(), a, b, "original")
    parts = geodesic(decoder(), a, b, "original", chunk=2)
    torch.testing.assert_close(parts.control, whole.control)


def test_the_original_inserts_knots_after_six_failures():
    a, b = random_pairs(4)
    b[3] = a[3]  # nothing to insert a knot for
    found = geodesic(decoder(), a, b, "original", max_iterations=150)
    assert 4 < found.control.shape[1] <= 12
    apart = geodesic(decoder(), a, b, "original", max_iterations=150, chunk=3)
    assert apart.control.shape == found.control.shape
    torch.testing.assert_close(apart.length[3:], found.length[3:])


@pytest.mark.parametrize("spans", [1, 3, 5, 8, 11])
def test_control_points_and_knots_belong_together_whatever_the_first_curves(spans):
    a, b = random_pairs(4)
    line = straight(a, b, spans)
    make = torch.Generator().manual_seed(spans)
    bend = 0.3 * torch.randn(line.control[:, 1:-1].shape, generator=make, dtype=torch.float64)
    first = Curves(line.control + torch.nn.functional.pad(bend, (0, 0, 1, 1)), line.knots)
    found = geodesic(decoder(), a, b, first=first)
    again = curve_length(decoder(), found.control, found.knots).length
    torch.testing.assert_close(again, found.length, rtol=1e-4, atol=0)
    assert (found.length <= found.straight_length).all()


def test_first_curves_that_do_not_fit_are_named():
    a, b = random_pairs(3)
    cases = [
        (straight(a, b).control, TypeError, "first must be Curves; got Tensor"),
        (straight(a[:2], b[:2]), ValueError, "first must be 3 cubic curves in 3 dimensions"),
        (straight(a, b, degree=2), ValueError, "of degree 2"),
        (straight(a.float(), b.float()), ValueError, "the dtype and device of start"),
        (straight(a, a), ValueError, "first must run from start to end"),
        (straight(a, torch.nan * b), ValueError, "first must be finite"),
    ]
    for first, error, words in cases:
        with pytest.raises(error, match=words):
            geodesic(decoder(), a, b, first=first)


def test_fewer_pairs_at_a_time_where_decoders_are_large(monkeypatch):
    a, b = random_pairs(9)
    done = []
    whole = geodesic(decoder(), a, b, report=done.append)
    assert done == [9]
    monkeypatch.setattr("fastlatent.geometry.solver.CPU_ROOM", 1 << 16)
    parts = geodesic(decoder(), a, b, report=done.append)
    assert len(done) > 3 and done[-1] == 9
    torch.testing.assert_close(parts.length, whole.length)


def test_only_results_of_pairs_are_kept():
    """The same chunk over and over, so that what grows is what is kept of each pair."""
    weight = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0)) / 8
    ends = torch.stack(random_pairs(4, dtype=torch.float32)).repeat(1, 60, 1)
    options = {"spans": (1,), "max_iterations": 1, "chunk": 4}

    def solve(n):
        return allocated(lambda: geodesic(lambda z: (z @ weight).tanh(), *ends[:, :n], **options))

    solve(8)  # what is allocated once
    one_point_each = 240 * weight[0].nbytes
    assert solve(240) < solve(8) + one_point_each


@pytest.mark.slow
def test_ten_thousand_pairs_in_bounded_memory():
    """Many chunks take what a few that are alike take, and where they differ less than a chunk
    whose curves are all measured on the finest grid."""
    large = bigan(None, torch.float32)
    ends = torch.randn(2, 10_000, 16, generator=torch.Generator().manual_seed(0))
    alike = ends[:, :32].repeat(1, 313, 1)[:, :10_000]
    options = {"spans": (1,), "max_iterations": 2}

    def solve(ends, **more):
        return allocated(lambda: geodesic(large, *ends, **options, **more))

    solve(ends[:, :32])  # what is allocated once
    few, many = solve(alike[:, :128]), solve(alike)
    finest, other = solve(ends[:, :32], length_rtol=1e-9), solve(ends)
    assert many < few + (8 << 20)  # results take 3 MiB
    assert other < finest


def test_rounding_is_part_of_the_error():
    """Ends so near that decoded points differ by their last bits."""
    a, _ = random_pairs(4, dtype=torch.float32)
    far = lambda z: decoder()(z) + 100  # noqa: E731
    found = geodesic(far, a, a + 1e-6)
    assert (found.length_error > found.length).all()


def test_a_pair_does_not_feel_its_neighbours():
    a, b = random_pairs(64, dtype=torch.float32)
    together = geodesic(decoder(), a, b)
    for row in (0, 17, 63):
        alone = geodesic(decoder(), a[row : row + 1], b[row : row + 1])
        torch.testing.assert_close(alone.length[0], together.length[row], rtol=1e-5, atol=0)
    chunked = geodesic(decoder(), a, b, chunk=7)
    torch.testing.assert_close(chunked.length, together.length, rtol=1e-5, atol=0)
    again = geodesic(decoder(), a, b)
    assert torch.equal(again.control, together.control)


def test_degenerate_and_broken_pairs_leave_the_others_alone():
    a, b = random_pairs(5)
    b[1] = a[1]

    smooth = decoder()

    def broken(z):
        return torch.where((z == a[3]).all(1, keepdim=True), torch.nan, smooth(z))

    found = geodesic(broken, a, b)
    assert found.status.tolist()[1] == Status.DEGENERATE
    assert found.status.tolist()[3] == Status.NON_FINITE
    assert found.length[1] == 0 and found.improvement[1] == 0 and found.energy[1] == 0
    good = [0, 2, 4]
    clean = geodesic(decoder(), a[good], b[good])
    torch.testing.assert_close(found.length[good], clean.length)
    line = straight(a, b).refine(found.curves.spans)
    torch.testing.assert_close(found.control[[1, 3]], line.control[[1, 3]])


def test_a_first_curve_through_a_hole_leaves_the_status_of_the_better_one():
    def holed(z):
        hole = torch.where(z[:, 1:] > 0.5, torch.nan, 1.0)
        return hole * torch.cat([z, torch.sin(3 * z)], 1)

    a, b = points([-1.0, 0.0]), points([1.0, 0.0])
    bent = straight(a, b, spans=2).control.clone()
    bent[:, 1:-1, 1] = 1
    first = Curves(bent, straight(a, b, spans=2).knots)
    assert curve_length(holed, first.control, first.knots).length.isnan().all()
    alone, guided = geodesic(holed, a, b), geodesic(holed, a, b, first=first)
    torch.testing.assert_close(guided.length, alone.length)
    assert alone.status.tolist() == guided.status.tolist() == [Status.CONVERGED]


def test_finer_grid_where_detours_hide():
    """A decoder that wiggles between the points of the first grid must not fool the length."""

    def wiggle(z):
        return torch.cat([z, (40 * z[:, :1]).sin() / 4], 1)

    found = geodesic(wiggle, points([-1.0, 0.0]), points([1.0, 0.3]), spans=(1, 4))
    dense = curve_length(wiggle, found.control, found.knots, rtol=1e-8).length
    torch.testing.assert_close(found.length, dense, rtol=2e-3, atol=0)
    assert (found.length <= found.straight_length).all()


def test_graph_finds_the_way_around():
    """A ring of data around a mesa: the straight line goes over it, the graph around it."""

    def mesa(z):
        return torch.cat([z, 6 * torch.sigmoid(40 * (1.2 - z.square().sum(1, keepdim=True)))], 1)

    angle = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    ring = 1.2 * torch.stack([angle.cos(), angle.sin()], 1)
    a, b = points([-1.2, 0.0]), points([1.2, 0.0])
    alone = geodesic(mesa, a, b, spans=(1, 4, 8))
    first = graph_curves(mesa, ring, a, b)
    guided = geodesic(mesa, a, b, spans=(1, 4, 8), first=first)
    assert float(guided.length) < float(alone.length)
    assert float(guided.length) < 1.2 * math.pi + 0.05
    with pytest.raises(ValueError, match="neighbours must be a whole number, at least 1"):
        graph_curves(mesa, ring, a, b, neighbours=0)
    with pytest.raises(ValueError, match="nodes must be"):
        graph_curves(mesa, ring[:, :1], a, b)
    with pytest.raises(ValueError, match="nodes must be finite"):
        graph_curves(mesa, torch.full_like(ring, torch.nan), a, b)
    with pytest.raises(ValueError, match="graph_curves: end must be finite"):
        graph_curves(mesa, ring, a, torch.nan * b)


def test_where_a_decoder_is_not_finite_graph_paths_are_straight_lines():
    a, b = random_pairs(3, d=2)
    nodes = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()

    def broken(z):
        return torch.where((z == a[1]).all(1, keepdim=True), torch.nan, z)

    curves = graph_curves(broken, nodes, a, b)
    line = straight(a[1:2], b[1:2], curves.spans)
    torch.testing.assert_close(curves.control[1:2], line.control)


def test_graph_of_separate_clusters_is_joined():
    a, b = points([-5.0, 0.0]), points([5.0, 0.0])
    make = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(40, 2, generator=make, dtype=torch.float64)
    curves = graph_curves(lambda z: z, torch.cat([a + noise, b + noise]), a, b, neighbours=3)
    torch.testing.assert_close(curves.start, a)
    assert float(curve_length(lambda z: z, curves.control, curves.knots).length) < 10.6


def test_distances_are_a_metric():
    z = points([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-0.5, 0.5])
    matrix = distance_matrix(sphere, z, spans=(8,), **FINE)
    unit = sphere(z)
    torch.testing.assert_close(matrix, (unit @ unit.T).clamp(-1, 1).acos(), rtol=0, atol=2e-7)
    assert torch.equal(matrix, matrix.T)


def test_distances_some_pairs_at_a_time(monkeypatch):
    z, done = torch.cat(random_pairs(3)), []
    options = {"spans": (2,), "method": "original", "seed": 3}
    whole = distance_matrix(decoder(), z, **options)
    monkeypatch.setattr("fastlatent.geometry.paths.MATRIX_PAIRS", 4)
    guess = straight(*(z[k] for k in torch.triu_indices(6, 6, 1)), 2)
    parts = distance_matrix(decoder(), z, first=guess, report=done.append, **options)
    assert done == [4, 8, 12, 15]
    # Noise of the published procedure follows the place of a pair, so that only the first agree.
    assert torch.equal(parts[0, :5], whole[0, :5])
    assert not torch.equal(parts, whole) and torch.equal(parts, parts.T)
    torch.testing.assert_close(
        distance_matrix(decoder(), z), distance_matrix(decoder(), z, first=guess), rtol=1e-3, atol=0
    )


def test_midpoint_of_a_geodesic():
    found = geodesic(sphere, A, B, spans=(8,), **FINE)
    middle = torch.nn.functional.normalize(sphere(A) + sphere(B))
    torch.testing.assert_close(sphere(midpoint(sphere, found.curves)), middle, rtol=0, atol=1e-5)


def test_reports_what_is_done():
    done = []
    geodesic(sphere, *random_pairs(10, 2), chunk=4, report=done.append)
    assert done == [4, 8, 10]


def test_smaller_chunks_where_memory_is_short():
    def hungry(z):
        if len(z) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sphere(z)

    a, b = random_pairs(6, 2)
    found = geodesic(hungry, a, b)
    torch.testing.assert_close(found.length, geodesic(sphere, a, b).length)

    def starving(z):
        if len(z) <= 2:
            return sphere(z)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(MemoryError, match="not even one pair fits into memory"):
        geodesic(starving, a, b)


def test_no_pairs():
    found = geodesic(sphere, *random_pairs(0, 2))
    assert len(found) == 0 and found.length.shape == (0,)


def test_bad_arguments():
    with pytest.raises(TypeError, match="start must be a float32 or float64 tensor"):
        geodesic(sphere, A.half(), B.half())
    with pytest.raises(ValueError, match=r"start and end must both be \(n, d\)"):
        geodesic(sphere, A, B[:, :1])
    with pytest.raises(ValueError, match="start and end must have one dtype"):
        geodesic(sphere, A, B.float())
    with pytest.raises(ValueError, match="end must be finite"):
        geodesic(sphere, A, B * torch.inf)
    with pytest.raises(ValueError, match="method must be one of lbfgs, adam, original"):
        geodesic(sphere, A, B, "newton")
    for wrong in ({"spans": (4, 1)}, {"spans": ()}, {"tolerance": 0.0}, {"max_iterations": 0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be"):
            geodesic(sphere, A, B, **wrong)
    for wrong in ({"length_rtol": 0.0}, {"chunk": 0}, {"points": 1}, {"segments": 0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be"):
            geodesic(sphere, A, B, **wrong)
    for wrong in ({"chunk": 2.5}, {"tolerance": "x"}, {"spans": (2.5,)}, {"points": None}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"geodesic: {name} must be"):
            geodesic(sphere, A, B, **wrong)


def test_distances_between_no_points_and_what_is_no_points():
    assert distance_matrix(sphere, A[:0]).shape == (0, 0)
    assert distance_matrix(sphere, A).tolist() == [[0]]
    with pytest.raises(TypeError, match="distance_matrix: points must be a float32 or float64"):
        distance_matrix(sphere, [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"distance_matrix: points must be \(m, d\); got"):
        distance_matrix(sphere, A[0])
    with pytest.raises(ValueError, match="distance_matrix: points must be finite"):
        distance_matrix(sphere, torch.nan * A)


class InUnits(nn.Module):
    """A decoder of latents that are given in other units and from another origin."""

    def __init__(self, first: nn.Linear, rest: nn.Module, units: Tensor, origin: Tensor):
        super().__init__()
        moved = nn.Linear(*first.weight.T.shape, dtype=torch.float64)
        with torch.no_grad():
            moved.weight.copy_(first.weight / units)
            moved.bias.copy_(first.bias - moved.weight @ origin)
        self.layers = nn.Sequential(moved, rest)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def test_geodesics_follow_the_units_of_latents():
    torch.manual_seed(0)
    first = nn.Linear(2, 16, dtype=torch.float64)
    rest = nn.Sequential(nn.Tanh(), nn.Linear(16, 9, dtype=torch.float64))
    start, end = 2 * torch.randn(2, 8, 2, dtype=torch.float64)
    found = []
    for units, origin in (
        ((1, 1), (0, 0)),
        ((1e-4, 1e-4), (0, 0)),
        ((1e4, 1e-4), (0, 0)),
        ((1e-2, 30), (5, 1e3)),
    ):
        units, origin = (torch.tensor(x, dtype=torch.float64) for x in (units, origin))
        decoder = InUnits(first, rest, units, origin).eval().requires_grad_(False)
        curves = geodesic(decoder, origin + units * start, origin + units * end)
        found.append((curves.length, (curves.control - origin) / units, curves.status))
    for other in found[1:]:
        for mine, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-7)
