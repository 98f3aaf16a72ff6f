"""Searches that must not end where they begin: saddles, hills, holes, and grids too coarse to see.

The lengths of detours around hills are those of fine searches from a curve beside the hill.
"""

import math

import pytest
import torch
from manifolds import (
    cone,
    cone_distance,
    half_plane,
    half_plane_distance,
    hill,
    points,
    sphere,
    sphere_distance,
    swiss_distance,
    swiss_roll,
)

from fastlatent.geometry import (
    Curves,
    MetricField,
    Status,
    curve_length,
    distance_matrix,
    geodesic,
    graph_curves,
    straight,
)

A, B = points([-2.0, 0.0]), points([2.0, 0.0])
DETOURS = {(1.0, 0.5): 4.35745, (3.0, 2.0): 5.32597, (30.0, 0.5): 5.22949}


def random_pairs(n, d=2, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=make, dtype=torch.float64).unbind(0)


def half_plane_pairs(n, spread, seed=0):
    """Heights over many orders of magnitude."""
    a, b = random_pairs(n, 2, seed)
    for z in (a, b):
        z[:, 1] = (spread * z[:, 1]).exp()
    return a, b


def beside(a, b, way=1.0):
    """Curves from a to b that leave to one side."""
    curves = straight(a, b, 4)
    control = curves.control.clone()
    control[:, 1:-1, 1] += way
    return Curves(control, curves.knots)


def hole(z):
    """The plane without a disc."""
    return torch.where(z.norm(dim=1, keepdim=True) < 0.5, torch.nan, z)


@pytest.mark.parametrize(("shape", "length"), DETOURS.items())
def test_a_line_over_the_middle_of_a_hill_is_left(shape, length):
    found = geodesic(hill(*shape), A, B)
    assert float(found.length) == pytest.approx(length, rel=2e-4)
    assert float(found.straight_length) > 1.08 * length


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
@pytest.mark.parametrize("d", [2, 5, 16])
def test_saddles_are_left_in_float32_in_any_dimension(method, d):
    a = torch.zeros(3, d)
    a[:, 0] = -2
    found = geodesic(hill(10), a, -a, method, chunk=2)
    near = 1e-3 if method == "lbfgs" else 5e-3
    torch.testing.assert_close(found.length, torch.full((3,), 4.93855), rtol=near, atol=0)
    again = geodesic(hill(10), a[:1], -a[:1], method)
    torch.testing.assert_close(again.length[0], found.length[2], rtol=1e-5, atol=0)


def test_the_seed_says_to_which_side():
    sides = {}
    for seed in range(4):
        found = geodesic(hill(10), A, B, seed=seed)
        assert float(found.length) == pytest.approx(4.93855, rel=2e-4)
        assert torch.equal(found.control, geodesic(hill(10), A, B, seed=seed).control)
        sides[float(found.control[0, 4, 1].sign())] = seed
    assert set(sides) == {-1, 1}


def test_a_hill_with_a_flat_top_is_gone_around():
    """The middle of the top is a minimum among curves nearby."""

    def plateau(z):
        return torch.cat([z, 10 * torch.sigmoid(8 * (1 - z.square().sum(1, keepdim=True)))], 1)

    found = geodesic(plateau, A, B)
    guided = geodesic(plateau, A, B, first=beside(A, B, 1.5))
    assert float(found.straight_length) > 20
    assert float(found.length) == pytest.approx(float(guided.length), rel=5e-3)


@pytest.mark.parametrize("slope", [1.0, 2.0, 5.0])
def test_the_tip_of_a_cone_is_left(slope):
    """Where lines meet the tip the gradient is not a number; it used to count as small."""
    a, b = (
        points([-1.0, 0.0], [-2.0, 0.0], [1.0, 1.0]),
        points([1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]),
    )
    found = geodesic(cone(slope), a, b)
    torch.testing.assert_close(found.length, cone_distance(slope, a, b), rtol=2e-4, atol=0)


def test_what_is_straight_stays_straight_beside_what_is_not():
    """The second pair passes the hill far off."""
    a, b = points([-2.0, 0.0], [-2.0, 9.0]), points([2.0, 0.0], [2.0, 9.0])
    found = geodesic(hill(10), a, b)
    assert found.iterations[1] == 0 and found.length[1] == pytest.approx(4, abs=1e-12)
    assert found.evaluations[1] < found.evaluations[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_a_finite_start_is_kept_where_the_straight_line_is_not(method, dtype):
    """The shortest way touches the disc: two tangents and an arc."""
    a, b = A.to(dtype), B.to(dtype)
    first = beside(a, b)
    found = geodesic(hole, a, b, method, first=first)
    shortest = 2 * math.sqrt(4 - 0.25) + 2 * 0.5 * math.asin(0.25)
    began = curve_length(hole, first.control, first.knots).length
    assert found.straight_length.isnan().all() and found.improvement.isnan().all()
    assert shortest - 1e-3 < float(found.length) <= float(began)
    assert found.length_error < 0.01 and found.status != Status.NON_FINITE
    measured = curve_length(hole, found.control, found.knots).length
    torch.testing.assert_close(measured, found.length, rtol=2e-3, atol=0)
    assert found.history[0].isnan().all() and found.history[-1].isfinite().all()


def test_the_best_finite_curve_of_all_is_the_result():
    """Three pairs: through the disc with a start around it, past it, and through it alone."""
    a = points([-2.0, 0.0], [-2.0, 3.0], [-2.0, 0.1])
    b = points([2.0, 0.0], [2.0, 3.0], [2.0, 0.1])
    first = beside(a, b)
    first.control[2] = straight(a, b, 4).control[2]
    found = geodesic(hole, a, b, first=first)
    assert found.length[0].isfinite() and found.length[1] == pytest.approx(4, abs=1e-9)
    assert found.length[2].isnan() and found.status[2] == Status.NON_FINITE
    assert found.status[1] == Status.CONVERGED and found.improvement[1].abs() < 1e-9
    assert torch.equal(found.control[2], straight(a, b, 4).refine(8).control[2])


def test_a_first_curve_is_kept_though_no_search_can_begin_there():
    """Its own points are decoded, those of any other curve are not."""
    first = beside(A, B)

    def narrow(z):
        t = (z[:, :1] + 2) / 4
        near = (z[:, 1:] - 1.5 * t * (1 - t) * 4).abs() < 0.8
        return torch.where(near, z, torch.nan)

    found = geodesic(narrow, A, B, first=first)
    assert found.length.isfinite().all() and found.straight_length.isnan().all()


def test_distances_by_a_field_that_is_not_finite_everywhere():
    def field(z):
        eye = torch.eye(2, dtype=z.dtype).expand(len(z), 2, 2)
        return torch.where(z.norm(dim=1)[:, None, None] < 0.5, torch.nan, eye)

    ends = torch.cat([A, B])
    alone = distance_matrix(MetricField(field), ends)
    guided = distance_matrix(MetricField(field), ends, first=beside(A, B))
    assert alone[0, 1].isnan() and 4.1 < guided[0, 1] < 5
    assert torch.equal(guided, guided.T)


def test_a_graph_leads_around_a_hole():
    make = torch.Generator().manual_seed(0)
    nodes = 4 * torch.rand(600, 2, generator=make, dtype=torch.float64) - 2
    first = graph_curves(hole, nodes, A, B, spans=12)
    found = geodesic(hole, A, B, first=first)
    assert found.straight_length.isnan().all() and 4.1 < float(found.length) < 4.6


def test_searches_whose_grid_is_too_coarse_say_so():
    field = MetricField(half_plane)
    a, b = points([-0.051, 0.0113], [0.0, 1e-3]), points([-1.5957, 0.01], [0.0, 1e3])
    found, true = geodesic(field, a, b), half_plane_distance(a, b)
    assert true.tolist() == pytest.approx([9.957878, 13.815511], abs=1e-6)
    assert not found.converged.any()
    assert found.status[1] == Status.UNRESOLVED
    assert float(found.length[0]) < 13
    torch.testing.assert_close(found.length[1], true[1], rtol=1e-3, atol=0)
    unresolved = found.status == Status.UNRESOLVED
    assert ((found.length - true).abs() <= found.length_error)[unresolved].all()
    assert ((found.straight_length - true).abs() <= found.straight_error)[1]


def test_an_unresolved_error_reaches_down_to_the_chord_between_the_ends():
    """Waves that no grid of the search can see: nothing else is known of how short curves get."""

    def waves(z):
        return torch.cat([z, (1e4 * z[:, :1]).sin()], 1)

    found = geodesic(waves, A, B, spans=(1,))
    chord = float((waves(A) - waves(B)).norm())
    assert found.status == Status.UNRESOLVED
    assert float(found.length - found.length_error) == pytest.approx(chord, abs=1e-9)


KNOWN = {
    "half-plane": (MetricField(half_plane), half_plane_pairs(30, 0.5), half_plane_distance),
    "half-plane over e^4": (MetricField(half_plane), half_plane_pairs(30, 2), half_plane_distance),
    "half-plane over e^12": (MetricField(half_plane), half_plane_pairs(4, 6), half_plane_distance),
    "sphere": (sphere, random_pairs(30), sphere_distance),
    "swiss roll": (swiss_roll, [3 * z.abs() for z in random_pairs(30)], swiss_distance),
    "cone": (cone(2.0), random_pairs(30), lambda a, b: cone_distance(2.0, a, b)),
}


@pytest.mark.parametrize("name", ["half-plane", "half-plane over e^4", "cone"])
def test_errors_in_float32_hold_what_a_search_leaves(name):
    """It stops where the next step promises less than a thousandth of the energy."""
    decode, ends, distance = KNOWN[name]
    a, b = (z.float() for z in ends)
    found, true = geodesic(decode, a, b), distance(a.double(), b.double())
    covered = (found.length - true).abs() <= found.length_error + 1e-6 * true
    promised = found.converged | (found.status == Status.UNRESOLVED)
    assert promised.sum() > 2 and covered[promised].all()


@pytest.mark.parametrize("name", KNOWN)
def test_lengths_and_errors_cover_known_distances(name):
    """No length is below the distance, and what has converged or is unresolved covers it."""
    decode, (a, b), distance = KNOWN[name]
    found, true = geodesic(decode, a, b), distance(a, b)
    assert (found.length >= true - found.length_error - 1e-9).all()
    covered = (found.length - true).abs() <= found.length_error + 1e-9
    promised = found.converged | (found.status == Status.UNRESOLVED)
    assert promised.any() and covered[promised].all()
