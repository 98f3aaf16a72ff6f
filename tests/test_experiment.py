"""The Monte-Carlo experiment and the maps of the metric, on decoders whose geometry is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifolds import half_plane, points, sphere

from fastlatent.commands.experiments.findings import ending, statistics_lines, summary_values
from fastlatent.geometry.curves import straight
from fastlatent.geometry.experiment import (
    cosines,
    eigenvector_pairs,
    experiment,
    summarise,
    walk_along,
)
from fastlatent.geometry.field import eigenvector_lines, metric_field
from fastlatent.geometry.metric import MetricField

STRETCH = torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).double()  # M = diag(10, 1)


def stretched(z):
    return z @ STRETCH.to(z)


def polar(z):
    """A metric whose large eigenvalue lies along circles around (3, 0)."""
    r = z - z.new_tensor([3.0, 0.0])
    q = r.square().sum(1)[:, None, None]
    across = torch.stack([-r[:, 1], r[:, 0]], 1)
    return torch.eye(2).to(z) + 4 * across[:, :, None] * across[:, None] / q


def test_the_step_goes_along_the_largest_eigenvector_towards_the_origin():
    start = points([2.0, 1.0], [-2.0, 1.0], [0.5, 7.0])
    pairs = eigenvector_pairs(stretched, start, 1.5)
    torch.testing.assert_close(pairs.end, points([0.5, 1.0], [-0.5, 1.0], [-1.0, 7.0]))
    assert not pairs.tied.any()


def test_a_start_at_right_angles_counts_as_positive_and_is_told():
    start = points([0.0, 1.0], [0.0, 0.0], [-0.0, -3.0], [1e-18, 5.0])
    pairs = eigenvector_pairs(stretched, start, 1.0)
    torch.testing.assert_close(pairs.end, start - points([1.0, 0.0]))
    assert pairs.tied.all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 5), st.sampled_from([torch.float32, torch.float64]))
def test_eigenvector_pairs_of_random_metrics(seed, step, dtype):
    make = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 5, generator=make, dtype=torch.float64)
    start = torch.randn(8, 3, generator=make, dtype=torch.float64).to(dtype)
    pairs = eigenvector_pairs(lambda z: z @ weight.to(z), start, step)
    moved = (pairs.end - start).double()
    rtol = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        moved.norm(dim=1), torch.full((8,), step).double(), rtol=rtol, atol=1e-5
    )
    largest = torch.linalg.eigvalsh(weight @ weight.T)[-1]
    lengths = (moved @ weight).norm(dim=1)
    torch.testing.assert_close(
        lengths, (largest.sqrt() * step).expand(8), rtol=max(rtol, 1e-5 / step), atol=0
    )
    assert ((moved * start.double()).sum(1) <= 1e-5 * step)[~pairs.tied].all()


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_the_step_must_be_positive(step):
    with pytest.raises(ValueError, match="eigenvector_pairs: step must be positive"):
        eigenvector_pairs(stretched, points([1.0, 1.0]), step)


def test_a_metric_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"must be finite; it is not at 1 of 2 starts"):
        eigenvector_pairs(MetricField(half_plane), points([1.0, 1.0], [1.0, 0.0]))


def test_experiment_on_the_sphere():
    start = points([1.0, 0.0], [0.5, 0.5], [1.0, 0.0])
    end = points([0.0, 1.0], [0.5, 0.5], [-0.9, 0.3])
    result = experiment(sphere, start, end, spans=(1, 4), tolerance=1e-10, length_rtol=1e-6)
    assert result.improvement.tolist() == pytest.approx(
        [1 - (math.pi / 2) / 1.7100664402, 0, 1 - 2.8157096964 / 3.0026503807], abs=1e-4
    )
    assert result.counted.tolist() == [True, False, True]
    assert result.status_counts() == {"converged": 2, "degenerate": 1}
    assert result.seconds > 0
    # 16 speeds, each times 1 / 15: a curve of constant speed comes out 16 / 15 of its length.
    shorter = float(result.original_length[0])
    assert shorter == pytest.approx(math.pi / 2 * 16 / 15, rel=1e-4)
    t = torch.linspace(0, 1, 16).double()
    q = (1 - t).square() + t.square()
    speeds = 2 / (1 + q) * math.sqrt(2)
    assert float(result.original_straight[0]) == pytest.approx(float(speeds.sum()) / 15, rel=1e-5)
    expected = 1 - result.original_length / result.original_straight
    torch.testing.assert_close(result.original_improvement[::2], expected[::2])


def test_summary_of_known_numbers():
    found = summarise(torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]))
    assert (found.count, found.mean, found.least, found.most) == (5, 4.0, 1.0, 10.0)
    assert found.sd == pytest.approx(math.sqrt(12.5))
    # Student's t of 4 degrees of freedom: 2.776445.
    assert found.high - found.mean == pytest.approx(2.776445 * math.sqrt(12.5 / 5), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    single = summarise(torch.tensor([0.5]))
    assert (single.count, single.mean) == (1, 0.5) and math.isnan(single.sd)
    assert summarise(torch.empty(0)).count == 0


def test_walking_takes_equal_steps_where_the_curve_is_decoded_to():
    result = experiment(sphere, points([1.0, 0.0]), points([-0.9, 0.3]))
    for curves in (result.lines, result.geodesics.curves):
        steps = sphere(walk_along(sphere, curves, 9)[0]).diff(dim=0).norm(dim=1)
        assert float(steps.max() / steps.min()) < 1.02


def test_cosines():
    y = points([1.0, 0.0], [1.0, 1.0], [0.0, -2.0])[None].unflatten(2, (1, 2))
    half = math.sqrt(0.5)
    expected = torch.tensor([[[1, half, 0], [half, 1, -half], [0, -half, 1]]]).double()
    torch.testing.assert_close(cosines(y), expected)
    assert not cosines(torch.zeros(1, 2, 3)).any()


def test_field_of_a_known_metric():
    field = metric_field(sphere, torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]), 41)
    assert field.matrix.shape == (41, 22, 2, 2)
    q = field.x[None].square() + field.y[:, None].square()
    torch.testing.assert_close(field.log_volume, 2 * (2 / (1 + q)).log(), atol=1e-5, rtol=1e-5)
    assert field.log_condition.abs().max() < 1e-5
    assert field.extent == (-1, 1, -2, 2)
    with pytest.raises(ValueError, match="metric_field: low must be below high"):
        metric_field(sphere, torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="resolution must be at least 2"):
        metric_field(sphere, torch.zeros(2), torch.ones(2), 1)


def test_lines_follow_the_eigenvectors():
    low, high = torch.tensor([-2.0, -1.0]).double(), torch.tensor([2.0, 1.0]).double()
    level = eigenvector_lines(metric_field(stretched, low, high, 30))
    upright = eigenvector_lines(metric_field(stretched, low, high, 30), largest=False)
    assert max(np.ptp(line[:, 1]) for line in level) < 1e-9
    assert max(np.ptp(line[:, 0]) for line in upright) < 1e-9
    around = eigenvector_lines(metric_field(MetricField(polar), low, high, 120))
    away = eigenvector_lines(metric_field(MetricField(polar), low, high, 120), largest=False)
    for line in around:
        assert np.ptp(np.hypot(line[:, 0] - 3, line[:, 1])) < 0.02
    for line in away:
        assert np.ptp(np.arctan2(line[:, 1], line[:, 0] - 3)) < 0.02
    for lines in (level, upright, around, away):
        assert len(lines) > 10
        everything = np.concatenate(lines)
        assert (everything >= low.numpy()).all() and (everything <= high.numpy()).all()
        # They reach everywhere: no point is further than a few cells from a line.
        probes = np.random.default_rng(0).uniform(low.numpy(), high.numpy(), (50, 2))
        distance = np.linalg.norm(probes[:, None] - everything[None], axis=2).min(1)
        assert distance.max() < 0.5


def test_a_pair_without_a_straight_line_does_not_count():
    """It has a curve around the hole, and nothing to compare it with."""

    def hole(z):
        return torch.where(z.norm(dim=1, keepdim=True) < 0.5, torch.nan, z)

    a, b = points([-2.0, 0.0], [-2.0, 1.0]), points([2.0, 0.0], [2.0, 1.0])
    first = straight(a, b, 4)
    first.control[:, 1:-1, 1] += 1
    result = experiment(hole, a, b, first=first)
    assert result.geodesics.length.isfinite().all()
    assert result.counted.tolist() == [False, True]
    assert "1 without a straight line" in ending(result)
    assert "unknown" not in "".join(statistics_lines({"": result})[1:2])
    assert summary_values(result)["improvement"]["measured"]["count"] == 1


def test_unresolved_searches_are_counted_by_their_name():
    a, b = points([0.0, 1e-3], [0.0, 1.0]), points([0.0, 1e3], [1.0, 1.0])
    result = experiment(MetricField(half_plane), a, b)
    assert result.status_counts() == {"converged": 1, "unresolved": 1}
    assert ending(result).startswith("1 converged, 1 unresolved; ")
