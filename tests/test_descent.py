"""The minimisers, on quadratics whose minima, Newton steps and numbers of steps are known."""

import pytest
import torch
from manifolds import points

from fastlatent.geometry import Status
from fastlatent.geometry.descent import HALVINGS, _two_loops, adam, lbfgs

CURVATURE = torch.tensor([[1.0, 1, 1], [1, 30, 900], [1, 7, 49]], dtype=torch.float64)
MINIMA = points([1, -2, 3], [0.5, 0, -1], [-4, 4, 2])


class Quadratics:
    """1 + sum_j c_j (x_j - m_j)^2 / 2 for each of three problems; remembers what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, rows, gradient):
        self.asked.append((rows.tolist(), gradient))
        away = x - MINIMA[rows]
        value = 1 + (CURVATURE[rows] * away.square()).sum(1) / 2
        return value, CURVATURE[rows] * away if gradient else None

    def times(self, gradient):
        """How often each problem was evaluated."""
        return [
            sum(row in rows for rows, with_gradient in self.asked if with_gradient == gradient)
            for row in range(3)
        ]


def newton(gradient, rows):
    return gradient / CURVATURE[rows]


def plain(gradient, rows):
    return gradient.clone()


def search(method, objective, x, steps, precondition=plain, tolerance=1e-10):
    if method == "lbfgs":
        return lbfgs(objective, x, precondition, tolerance, steps)
    return adam(objective, x, torch.ones(len(x), dtype=x.dtype), tolerance, steps)


def starts():
    """The first problem is solved at the start."""
    return torch.stack([MINIMA[0], MINIMA[1] + 1, MINIMA[2] - 0.5])


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_a_solved_problem_stays_where_it_is(method):
    quadratics, x = Quadratics(), starts()
    found = search(method, quadratics, x, 1000)
    assert torch.equal(found.x[0], x[0]) and found.value[0] == 1
    assert found.status.tolist() == [Status.CONVERGED] * 3
    near = 1e-4 if method == "lbfgs" else 5e-3
    torch.testing.assert_close(found.x[1:], MINIMA[1:], rtol=0, atol=near)
    assert found.iterations[0] == (0 if method == "lbfgs" else 10)  # Adam looks at every tenth
    assert (found.iterations[1:] > found.iterations[0]).all()
    assert (found.initial == quadratics(x, torch.arange(3), False)[0]).all()


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_what_is_done_is_left_alone(method):
    """Problems that have converged keep every bit while others go on, and are not evaluated."""
    whole = Quadratics()
    found = search(method, whole, starts(), 1000)
    order = found.iterations.argsort()
    assert found.iterations.unique().numel() == 3
    for row in order[:2].tolist():
        steps = int(found.iterations[row]) + 1
        if method == "lbfgs":  # whose steps do not depend on how many there may be
            short = search(method, Quadratics(), starts(), steps)
            assert short.status[row] == Status.CONVERGED
            assert torch.equal(short.x[row], found.x[row])
        last = max(i for i, (rows, _) in enumerate(whole.asked) if row in rows)
        assert last < len(whole.asked) - 1
    assert whole.times(gradient=True) == found.gradients.tolist()
    assert whole.times(gradient=False) == found.values.tolist()


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_the_limit_on_steps(method):
    for limit in (1, 3):
        found = search(method, Quadratics(), starts(), limit)
        assert found.status[1:].tolist() == [Status.MAX_ITERATIONS] * 2
        assert found.iterations[1:].tolist() == [limit] * 2
        assert (found.iterations <= limit).all()
        assert (found.value < found.initial)[1:].all()


def test_newton_steps_reach_the_minimum_at_once():
    found = search("lbfgs", Quadratics(), starts(), 20, newton)
    assert found.iterations.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.x, MINIMA, rtol=0, atol=1e-12)
    assert found.gradients.tolist() == [1, 2, 2] and not found.values.any()


def test_directions_are_those_of_the_dense_inverse_hessian():
    """Each pair s, y turns H into (I - w s y^T) H (I - w y s^T) + w s s^T, w = 1 / s^T y."""
    make = torch.Generator().manual_seed(0)
    gradient, *pairs = torch.randn(7, 2, 4, generator=make, dtype=torch.float64)
    scale = torch.tensor([0.5, 3], dtype=torch.float64)[:, None]
    unit = torch.eye(4, dtype=torch.float64)
    dense, history = scale[:, :, None] * unit, []
    for step, change in zip(pairs[::2], pairs[1::2], strict=True):
        weight = 1 / (step * change).sum(1)
        history.append((step, change, weight))
        left = unit - weight[:, None, None] * step[:, :, None] * change[:, None]
        along = weight[:, None, None] * step[:, :, None] * step[:, None]
        dense = left @ dense @ left.mT + along
    got = _two_loops(gradient, torch.arange(2), history, lambda g, rows: scale[rows] * g)
    torch.testing.assert_close(got, (dense @ gradient[:, :, None])[:, :, 0])


def test_steps_that_are_too_long_are_halved():
    """Four times Newton's step climbs, its half gains nothing, its quarter is Newton's."""
    found = search("lbfgs", Quadratics(), starts(), 20, lambda g, rows: 4 * newton(g, rows))
    assert found.iterations.tolist() == [0, 1, 1]
    assert found.values.tolist() == [0, 2, 2] and found.gradients.tolist() == [1, 3, 3]
    torch.testing.assert_close(found.x, MINIMA, rtol=0, atol=1e-12)


def test_no_step_down_is_a_stall():
    """The gradient of the second problem points the wrong way."""
    quadratics, x = Quadratics(), starts()

    def misleading(x, rows, gradient):
        value, slope = quadratics(x, rows, gradient)
        return value, torch.where(rows[:, None] == 1, -slope, slope) if gradient else None

    found = search("lbfgs", misleading, x, 20, newton)
    assert found.status.tolist() == [Status.CONVERGED, Status.STALLED, Status.CONVERGED]
    assert torch.equal(found.x[1], x[1]) and found.value[1] == found.initial[1]
    assert found.iterations[1] == 0 and found.values[1] == HALVINGS


def test_adam_stalls_where_values_end_and_keeps_its_best():
    quadratics, x = Quadratics(), starts()

    def fenced(x, rows, gradient):
        value, slope = quadratics(x, rows, gradient)
        return torch.where((rows == 1) & (x[:, 0] < 1.2), torch.nan, value), slope

    found = search("adam", fenced, x, 1000)
    assert found.status.tolist() == [Status.CONVERGED, Status.STALLED, Status.CONVERGED]
    assert found.x[1, 0] >= 1.2 and 1 < found.value[1] < found.initial[1]


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_a_start_without_a_value(method):
    x = starts()
    x[1, 2] = torch.nan
    found = search(method, Quadratics(), x, 1000)
    assert found.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert found.iterations[1] == 0 and found.gradients[1] == 1
    assert torch.equal(found.x[1].isnan(), x[1].isnan()) and found.x[1, 0] == x[1, 0]


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_a_gradient_that_is_not_finite_is_no_sign_of_a_minimum(method):
    quadratics, x = Quadratics(), starts()

    def kinked(x, rows, gradient):
        value, slope = quadratics(x, rows, gradient)
        return value, torch.where(rows[:, None] == 1, torch.nan, slope) if gradient else None

    found = search(method, kinked, x, 1000)
    assert found.status.tolist() == [Status.CONVERGED, Status.STALLED, Status.CONVERGED]
    assert torch.equal(found.x[1], x[1])
