"""Curves and their lengths, against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from manifolds import half_plane, points, sphere, swiss_distance, swiss_roll
from memory import allocated

from fastlatent.geometry import (
    Curves,
    MetricField,
    as_metric,
    bezier,
    curve_length,
    curve_measure,
    equal_steps,
    fit,
    graph_curves,
    midpoint,
    straight,
)
from fastlatent.ops import polyline_energy, polyline_length

RULES = ("chord", "trapezoid", "midpoint", "gauss")
A, B = points([1.0, 0.0]), points([0.0, 1.0])
FINE = torch.linspace(0, 1, 400, dtype=torch.float64)
STRAIGHT = 2 * math.pi / (3 * math.sqrt(1.5))  # length on the sphere of the line from A to B


def some_curves(n=3, k=7, d=2, seed=0):
    make = torch.Generator().manual_seed(seed)
    return Curves(torch.randn(n, k, d, generator=make, dtype=torch.float64), knots(k))


def knots(k):
    return straight(A, B, k - 3).knots


@pytest.mark.parametrize("spans", [1, 2, 5, 8])
def test_straight_lines_run_at_constant_speed(spans):
    a, b = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    line = straight(a, b, spans)
    assert line.spans == spans and line.degree == 3
    torch.testing.assert_close(
        line.points(t), torch.lerp(a[:, None], b[:, None], t[:, None]), rtol=0, atol=1e-12
    )
    velocity = (b - a)[:, None].expand(-1, len(t), -1)
    torch.testing.assert_close(line.derivative(t), velocity, rtol=0, atol=1e-11)
    assert torch.equal(line.start, a) and torch.equal(line.end, b)


def test_one_piece_is_a_bezier_curve():
    control = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    bernstein = torch.stack([math.comb(3, i) * t**i * (1 - t) ** (3 - i) for i in range(4)], 1)
    torch.testing.assert_close(bezier(control).points(t), bernstein @ control, rtol=0, atol=1e-12)


def test_refinement_leaves_the_curve_alone():
    curves, t = some_curves(k=4), torch.linspace(0, 1, 201, dtype=torch.float64)
    finer = curves.refine(4)
    torch.testing.assert_close(finer.breaks, torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(finer.points(t), curves.points(t), rtol=0, atol=1e-12)
    assert curves.refine(3).breaks.tolist() == [0, 0.25, 0.5, 1]
    with pytest.raises(ValueError, match="refine: spans must be at least 4; got 3"):
        finer.refine(3)


def test_reversed_curves_pass_the_same_points():
    curves, t = some_curves().refine(5), torch.linspace(0, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(curves.reverse().points(t), curves.points(1 - t), atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_both_parts_of_a_split_curve_are_the_curve(degree):
    make = torch.Generator().manual_seed(degree)
    control = torch.randn(3, degree + 4, 2, generator=make, dtype=torch.float64)
    curves = Curves(control, straight(A, B, 4, degree).knots)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for cut in (0.3, 0.5, 0.77):  # 0.5 is a knot
        left, right = curves.split(cut)
        assert left.degree == right.degree == degree
        torch.testing.assert_close(left.points(t), curves.points(cut * t), rtol=0, atol=1e-12)
        after = (cut + (1 - cut) * t).clamp_max(1)
        torch.testing.assert_close(right.points(t), curves.points(after), rtol=0, atol=1e-12)
        assert torch.equal(left.end, right.start)
    for wrong in (0, 1, math.nan):
        with pytest.raises(ValueError, match="split: t must be strictly between 0 and 1; got"):
            curves.split(wrong)


def test_fit_recovers_a_spline_from_its_points():
    curves, t = some_curves(), torch.linspace(0, 1, 40, dtype=torch.float64)
    fitted = fit(curves.points(t), t, curves.spans)
    torch.testing.assert_close(fitted.control, curves.control, rtol=0, atol=1e-10)
    # Two points leave every inner control point free: the straight line comes out.
    ends = curves.points(t[[0, -1]])
    line = straight(ends[:, 0], ends[:, 1], 4)
    torch.testing.assert_close(fit(ends, t[[0, -1]], 4).control, line.control, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_length_of_a_line_on_the_sphere(rule):
    length, error = curve_length(sphere, straight(A, B).control, rule=rule, rtol=1e-6)
    assert abs(length - STRAIGHT) < 1e-7
    assert error < 1e-6 * STRAIGHT


def test_chords_of_the_quarter_arc():
    """Of a circle at constant speed, T chords have length 2 T sin(pi / 4 T)."""
    control = points([0.0], [1 / 3], [2 / 3], [1.0])[None]

    def circle(z):
        return torch.cat([(z * math.pi / 2).cos(), (z * math.pi / 2).sin()], -1)

    for segments in (8, 16, 64):
        chords = [2 * t * math.sin(math.pi / (4 * t)) for t in (segments, 2 * segments)]
        length, error = curve_length(circle, control, segments=segments, rtol=1)
        assert float(length) == pytest.approx(chords[1] + (chords[1] - chords[0]) / 3, abs=1e-12)
        assert float(error) == pytest.approx((chords[1] - chords[0]) / 3, abs=1e-12)
        true_error = abs(chords[1] - math.pi / 2)
        assert true_error / 2 < float(error) < 2 * true_error
    length, _ = curve_length(circle, control, segments=8, rtol=1)
    assert abs(float(length) - math.pi / 2) < 1e-6


def test_energy_depends_on_the_parameter_and_length_does_not():
    line, t = straight(A, B), torch.linspace(0, 1, 4097, dtype=torch.float64)
    for power, energy in ((1, 2.9455994349), (2, 3.9680), (3, 5.3458)):
        decoded = sphere(line.points(t**power))
        assert abs(polyline_length(decoded) - STRAIGHT) < 1e-6 * STRAIGHT
        digits = 1e-10 if power == 1 else 5e-5
        assert float(polyline_energy(decoded)) == pytest.approx(energy, abs=digits + 1e-6)


def test_length_by_a_metric_given_directly():
    """Between (0, 1) and (2, 1) the straight line of the half-plane has length 2."""
    control = straight(points([0.0, 1.0]), points([2.0, 1.0])).control
    for rule in RULES:
        length, _ = curve_length(MetricField(half_plane), control, rule=rule, rtol=1e-8)
        assert float(length) == pytest.approx(2.0, abs=1e-7)


def test_rules_of_the_original():
    """A flat decoder at constant speed: its sum is too long by points / (points - 1)."""
    line = straight(points([0.0, 0.0]), points([3.0, 4.0]))
    for n in (8, 16, 20):
        length, error = curve_length(lambda z: z, line.control, rule="original", points=n)
        assert float(length) == pytest.approx(5 * n / (n - 1), rel=1e-5)
        assert error.isnan()
    length, _ = curve_length(lambda z: z, line.control, rule="original_difference", points=16)
    assert float(length) == pytest.approx(5, rel=1e-4)


def test_measure_is_one_along_the_cheapest_direction():
    cheap = straight(points([0.0, 0.0]), points([1.0, 0.0]))
    dear = straight(points([0.0, 0.0]), points([0.0, 1.0]))

    def decoder(z):
        return z * z.new_tensor([1.0, 5.0])

    metric = as_metric(decoder)
    assert float(curve_measure(metric, cheap, 8)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="points must be a whole number, at least 2"):
        curve_measure(metric, cheap, 1)
    assert float(curve_measure(metric, dear, 8)) == pytest.approx(0, abs=1e-6)


def test_equal_steps_are_equal_on_the_surface():
    a, b = points([1.0, 0.0], [0.5, -1.0]), points([4.0, 3.0], [9.0, 4.0])
    curves = straight(a, b)
    t = equal_steps(swiss_roll, curves, 9)
    assert torch.equal(t[:, 0], torch.zeros(2).double())
    torch.testing.assert_close(t[:, -1], torch.ones(2).double())
    for curve, cuts in zip(range(2), t, strict=True):
        steps = []
        for first, last in pairwise(cuts):
            path = curves[curve : curve + 1].points(torch.lerp(first, last, FINE))
            steps.append(swiss_roll(path).diff(dim=1).norm(dim=2).sum())
        steps = torch.stack(steps)
        assert steps.std() < 1e-3 * steps.mean()


def test_few_curves_at_a_time_where_decoders_are_large(monkeypatch):
    line = straight(points([1.0, 0.0], [0.5, -1.0], [2.0, 1.0]), points(*[[4.0, 3.0]] * 3))
    whole, rows = equal_steps(swiss_roll, line, 9), []

    def watched(z):
        rows.append(len(z))
        return swiss_roll(z)

    metric = as_metric(watched, example=line.start, analytic=False)
    monkeypatch.setattr("fastlatent.geometry.length.HELD", 1 << 10)
    rows.clear()
    torch.testing.assert_close(equal_steps(metric, line, 9), whole)
    assert sum(rows) == 3 * 513 and max(rows) <= 513


def test_only_lengths_of_curves_are_kept(monkeypatch):
    """The same curves over and over, so that what grows is what is kept of each."""
    monkeypatch.setattr("fastlatent.geometry.length.POINTS", 8 * 32)
    make = torch.Generator().manual_seed(0)
    weight, ends = torch.randn(3, 10_000, generator=make) / 8, torch.randn(2, 8, 3, generator=make)
    line = straight(*ends.repeat(1, 40, 1))

    def measure(n):
        return allocated(lambda: curve_length(lambda z: (z @ weight).tanh(), line.control[:n]))

    measure(16)  # what is allocated once
    one_point_each = 320 * weight[0].nbytes
    assert measure(320) < measure(16) + one_point_each


def test_midpoint_halves_the_length():
    a, b = points([2.0, 0.0]), points([2.0, 5.0])
    torch.testing.assert_close(midpoint(swiss_roll, straight(a, b)), points([2.0, 2.5]))
    assert float(swiss_distance(a, b)) == 5


def test_a_curve_of_no_length_is_cut_at_equal_t():
    a = points([1.0, 2.0])
    steps = equal_steps(sphere, straight(a, a), 5)
    torch.testing.assert_close(steps[0], torch.linspace(0, 1, 5).double())


def test_no_curves():
    none = straight(A[:0], B[:0])
    assert equal_steps(sphere, none, 5).shape == (0, 5)
    assert midpoint(sphere, none).shape == (0, 2)
    assert curve_measure(sphere, none).shape == (0,)
    assert graph_curves(sphere, A, A[:0], B[:0]).control.shape == (0, 11, 2)
    for rule in (*RULES, "original", "original_difference"):
        assert curve_length(sphere, none.control, rule=rule).length.shape == (0,)


LINE = straight(A, B)
BAD = [
    (lambda: curve_length(sphere, LINE.control, rule="simpson"), "rule must be one of chord"),
    (lambda: curve_length(sphere, LINE.control, rtol=0), "rtol must be positive; got 0"),
    (lambda: curve_length(sphere, LINE.control, rtol="x"), "rtol must be positive; got 'x'"),
    (
        lambda: curve_length(sphere, LINE.control, rule="original", points=1),
        "points must be a whole number, at least 2",
    ),
    (
        lambda: curve_length(sphere, LINE.control, segments=1.5),
        "segments must be a whole number, at least 1; got 1.5",
    ),
    (
        lambda: curve_length(sphere, LINE.control, max_segments=4),
        "max_segments must be at least twice segments, .* got 4 and 32",
    ),
    (lambda: equal_steps(sphere, LINE, 1), "equal_steps: m must be a whole number, at least 2"),
    (lambda: equal_steps(sphere, LINE, 2, segments=0), "segments must be .* at least 1; got 0"),
    (lambda: straight(A, torch.zeros(1, 3).double()), "straight: start and end must both be"),
    (lambda: straight(A, B, spans=0), "straight: spans must be a whole number, at least 1"),
    (lambda: bezier(A), r"bezier: control must be \(n, k, d\); got shape \(1, 2\)"),
    (lambda: bezier(A[None]), "bezier: control must hold 2 to 32 points a curve; got 1"),
    (lambda: graph_curves(sphere, A, A, B, spans=0), "graph_curves: spans must be"),
]
WRONG_TYPES = [
    (lambda: curve_measure(sphere, LINE.control), "curve_measure: curves must be Curves"),
    (lambda: equal_steps(sphere, LINE.control, 3), "equal_steps: curves must be Curves"),
    (lambda: midpoint(sphere, LINE.control), "midpoint: curves must be Curves; got Tensor"),
    (lambda: straight([0.0], B), "straight: start must be a float32 or float64 tensor; got list"),
    (lambda: bezier(None), "bezier: control must be a float32 or float64 tensor; got NoneType"),
    (lambda: graph_curves(sphere, None, A, B), "graph_curves: nodes must be a float32 or float64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), WRONG_TYPES)
def test_arguments_of_the_wrong_type(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("decode", "end", "length"),
    [
        (MetricField(half_plane), 1e3, math.log(1e6)),
        (MetricField(half_plane), 1e9, math.log(1e12)),
        (sphere, 1e4, 2 * (math.atan(1e4) - math.atan(1e-3))),
        (lambda z: z[:, 1:].log(), 1e8, math.log(1e11)),
        (lambda z: z[:, 1:].sqrt(), 1e8, 1e4 - math.sqrt(1e-3)),
    ],
)
def test_lengths_that_no_equal_parts_suit(decode, end, length, dtype):
    """Nearly all the length lies in the first thousandth of the line, or less."""
    line = straight(points([0.0, 1e-3]).to(dtype), points([0.0, end]).to(dtype))
    for rule in ("chord", "midpoint"):
        if rule == "chord" or isinstance(decode, MetricField):
            found = curve_length(decode, line.control, rule=rule)
            assert abs(float(found.length) - length) <= float(found.error) <= 2e-3 * length
