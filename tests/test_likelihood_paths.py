"""Shortest likelihood paths: closed forms, independence of pairs, what no path may do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from fastlatent.geometry.graphs import evenly_along, neighbour_edges, shortest_paths
from fastlatent.paths import Objective, likelihood_path, typical_level
from fastlatent.paths.starts import through_data

LOG_2PI = math.log(2 * math.pi)


def normal(z: Tensor) -> Tensor:
    """log N(z; 0, I)."""
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


def modes(k: int = 12, d: int = 2, seed: int = 0):
    """log-density of a mixture of round components, and where these are (k, d)."""
    make = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(k, d, generator=make, dtype=torch.float64)

    def log_prob(z: Tensor) -> Tensor:
        squares = (z[..., None, :] - means.to(z)).square().sum(-1)
        scale = -d * math.log(0.4) - 0.5 * d * LOG_2PI - math.log(k)
        return torch.logsumexp(scale - 0.5 * squares / 0.4**2, -1)

    return log_prob, means


def ends(k: int, d: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [1.5 * torch.randn(k, d, generator=make, dtype=dtype) for _ in range(2)]


def rows(*points: list[float]) -> Tensor:
    return torch.tensor(points, dtype=torch.float64)


def test_through_the_middle_of_a_normal_distribution():
    """Between (+-2, 0) the even line is the optimum, from whatever start."""
    found = likelihood_path(normal, rows([-2, 0]), rows([2, 0]))
    x = torch.tensor([-14, -10, -6, -2, 2, 6, 10, 14]) / 9
    expected = torch.stack([x, torch.zeros(8)], 1).double()
    torch.testing.assert_close(found.points[0, 1:-1], expected, atol=1e-3, rtol=0)
    assert float(found.terms.length) == pytest.approx(4, abs=1e-4)
    assert float(found.terms.nll) == pytest.approx(8 * LOG_2PI + 4.148, abs=0.01)
    assert float(found.terms.nll) == pytest.approx(18.851, abs=0.01)
    assert found.starts == ("line", "arc", "counter-arc", "wave")


def test_bent_starts_come_back_to_the_line():
    """The history of the path tells where it began: this pair's best start is no line."""
    log_prob, _ = modes()
    found = likelihood_path(log_prob, *ends(64))
    bent = found.chosen > 0
    assert 10 < int(bent.sum()) < 64
    torch.testing.assert_close(found.history.objective[0, ~bent], found.line.objective[~bent])
    assert (found.history.length[0, bent] > found.line.length[bent]).all()


def test_without_even_steps_all_points_go_to_the_mode():
    found = likelihood_path(normal, rows([-2, 0]), rows([2, 0]), spread_weight=0)
    assert found.points[0, 1:-1].abs().max() < 0.1
    assert float(found.terms.length) == pytest.approx(4, abs=0.01)
    assert float(found.terms.nll) == pytest.approx(8 * LOG_2PI, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_point_balances_length_and_density(dtype):
    """x = 0, and y = 2 w (c - y) / sqrt(a^2 + (c - y)^2) between (-a, c) and (a, c)."""
    start, end = rows([-1, 1.5]).to(dtype), rows([1, 1.5]).to(dtype)
    found = likelihood_path(normal, start, end, 1, length_weight=1)
    x, y = found.points[0, 1].tolist()
    # Where J is flat its rounding hides sqrt(eps J) of the place: 1e-3 in float32.
    tolerance = 1e-4 if dtype == torch.float64 else 1e-3
    assert x == pytest.approx(0, abs=tolerance)
    assert y == pytest.approx(0.955887, abs=tolerance)
    assert y == pytest.approx(2 * (1.5 - y) / math.hypot(1, 1.5 - y), abs=3 * tolerance)


def test_against_another_minimiser():
    """With no weight on the spread the objective is smooth, and SciPy's BFGS minimises it too."""
    log_prob, _ = modes()
    start, end = ends(6)
    found = likelihood_path(log_prob, start, end, 4, spread_weight=0, iterations=1500, starts=())
    objective = Objective(log_prob, spread_weight=0)

    def value_and_slope(x: np.ndarray, k: int):
        inner = torch.from_numpy(x).reshape(1, 4, 2)
        path = torch.cat([start[k : k + 1, None], inner, end[k : k + 1, None]], 1)
        terms, gradient = objective.terms_and_gradient(path, torch.zeros(1).double())
        return float(terms.objective), gradient.flatten().numpy()

    for k in range(6):
        first = found.points[k, 1:-1].flatten().numpy()
        best = minimize(value_and_slope, first, args=(k,), jac=True, options={"gtol": 1e-9})
        assert float(found.terms.objective[k]) == pytest.approx(best.fun, abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 9),
    d=st.integers(1, 5),
    weights=st.tuples(st.floats(0, 20), st.floats(0, 200)),
    reduction=st.sampled_from(["sum", "mean"]),
    typical=st.none() | st.floats(0, 8),
    seed=st.integers(0, 1000),
)
def test_gradient_by_hand(n, d, weights, reduction, typical, seed):
    """Against autograd of the formula, away from steps of no length."""
    make = torch.Generator().manual_seed(seed)
    path = torch.randn(3, n + 2, d, generator=make, dtype=torch.float64)
    slack = torch.full((3,), 0.1, dtype=torch.float64)
    length, spread = weights
    objective = Objective(normal, length, spread, reduction, typical)
    terms, gradient = objective.terms_and_gradient(path, slack)

    inner = path[:, 1:-1].clone().requires_grad_()
    full = torch.cat([path[:, :1], inner, path[:, -1:]], 1)
    steps = full.diff(dim=1).square().sum(2).sqrt()
    cost = -normal(inner)
    if typical is not None:
        cost = torch.relu(cost - typical)
    cost = cost.sum(1) if reduction == "sum" else 8 * cost.mean(1)
    variance = steps.var(1, correction=0)
    smooth = (variance + slack.square()).sqrt()
    (length * steps.sum(1) + spread * smooth + cost).sum().backward()
    torch.testing.assert_close(gradient, inner.grad)
    value = length * steps.sum(1) + spread * variance.sqrt() + cost
    torch.testing.assert_close(terms.objective, value.detach())
    torch.testing.assert_close(torch.stack(objective.terms(path)), torch.stack(terms))


def test_pairs_do_not_know_of_each_other():
    log_prob, _ = modes()
    start, end = ends(64)
    data = ends(100, seed=3)[0]
    options = {"starts": ("bent", "graph", "random"), "data": data, "iterations": 120}
    together = likelihood_path(log_prob, start, end, **options)
    alone = [
        likelihood_path(log_prob, start[k : k + 1], end[k : k + 1], **options) for k in range(64)
    ]
    points = torch.cat([one.points for one in alone])
    torch.testing.assert_close(together.points, points, atol=1e-6, rtol=0)
    chunked = likelihood_path(log_prob, start, end, **options, chunk=27)
    torch.testing.assert_close(together.points, chunked.points, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.stack(together.history), torch.stack(chunked.history), atol=1e-6, rtol=0
    )


@settings(max_examples=20, deadline=None)
@given(
    k=st.integers(0, 4),
    n=st.integers(1, 12),
    d=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    reduction=st.sampled_from(["sum", "mean"]),
    typical=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_every_path_keeps(k, n, d, dtype, reduction, typical, seed):
    """Ends bit for bit, nothing worse than the line, no NaN, the same twice."""
    log_prob, means = modes(5, d, seed)
    start, end = ends(k, d, seed, dtype)
    level = typical_level(log_prob, means) if typical else None
    options = {"reduction": reduction, "typical": level, "iterations": 60, "seed": seed}
    found = likelihood_path(log_prob, start, end, n, **options)
    assert found.points.shape == (k, n + 2, d) and found.points.dtype == dtype
    assert torch.equal(found.points[:, 0], start) and torch.equal(found.points[:, -1], end)
    assert (found.terms.objective <= found.line.objective).all()
    assert torch.stack(found.terms).isfinite().all() and found.points.isfinite().all()
    again = likelihood_path(log_prob, start, end, n, **options)
    assert torch.equal(found.points, again.points)
    # The terms are those of the points that are returned.
    measured = Objective(log_prob, reduction=reduction, typical=level).terms(found.points)
    torch.testing.assert_close(
        torch.stack(found.terms), torch.stack(measured), rtol=1e-4, atol=1e-4
    )
    assert found.history.nll.shape == (61, k)


def test_turning_the_ends_turns_the_path():
    """Under N(0, I), once the search has come to its end."""
    start, end = ends(16, seed=5)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double())[
        0
    ]
    options = {"iterations": 2000, "spread_weight": 10.0}
    found = likelihood_path(normal, start, end, **options)
    turned = likelihood_path(normal, start @ turn, end @ turn, **options)
    torch.testing.assert_close(found.points @ turn, turned.points, atol=1e-3, rtol=0)
    # Each settles where 50 iterations gain less than 1e-4.
    torch.testing.assert_close(found.terms.objective, turned.terms.objective, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", ["adam", "original"])
def test_equal_steps_and_equal_ends_give_no_nan(method):
    """All steps of these lines are exactly equal, or 0."""
    start = rows([-4.5, 0], [1, 1], [0, 0], [0, -4.5])
    end = rows([4.5, 0], [1, 1], [0, 0], [0, 4.5])
    found = likelihood_path(normal, start, end, method=method)
    assert found.points.isfinite().all() and torch.stack(found.history).isfinite().all()


def test_density_alone_climbs_to_the_modes():
    log_prob, means = modes()
    start, end = ends(16)
    found = likelihood_path(log_prob, start, end, length_weight=0, spread_weight=0, iterations=1000)
    inner = found.points[:, 1:-1].flatten(0, 1).detach().requires_grad_()
    (slope,) = torch.autograd.grad(log_prob(inner).sum(), inner)
    # Components lie apart: a mode is near a mean. All but a few points on ridges arrive.
    assert (slope.norm(dim=1) < 0.05).double().mean() > 0.97
    assert (torch.cdist(inner.detach(), means).amin(1) < 0.3).double().mean() > 0.9


def test_more_starts_find_better_paths():
    log_prob, _ = modes()
    start, end = ends(64)
    data = ends(500, seed=9)[0]
    line = likelihood_path(log_prob, start, end, starts=())
    bent = likelihood_path(log_prob, start, end)
    graph = likelihood_path(log_prob, start, end, data=data)
    assert graph.starts == (*bent.starts, "graph")
    values = [float(found.terms.objective.mean()) for found in (line, bent, graph)]
    assert float(line.line.objective.mean()) > values[0] > values[1] > values[2]
    assert (bent.terms.objective <= line.terms.objective).all()


def test_the_published_settings():
    """One pair by PyTorch's own Adam and autograd, as the program does it."""
    start, end = ends(3, seed=2)  # under a density with one mode, so that there is one place to go
    found = likelihood_path(normal, start, end, method="original")
    assert found.starts == ("line",) and found.iterations.tolist() == [500] * 3
    share = torch.arange(1, 9).double()[:, None] / 9
    for k in range(3):
        x = torch.lerp(start[k], end[k], share).requires_grad_()
        adam = torch.optim.Adam([x], lr=1e-2, betas=(0.9, 0.95))
        values = []
        for _ in range(500):
            steps = torch.cat([start[k : k + 1], x, end[k : k + 1]]).diff(dim=0).norm(dim=1)
            value = 10 * steps.sum() + 100 * steps.std(correction=0) - normal(x).sum()
            values.append(value.item())
            adam.zero_grad()
            value.backward()
            x.grad.clamp_(-1, 1)
            adam.step()
        # The first gradients are of rounding errors, so two runs take different ways to one place.
        late = found.history.objective[250:500, k].mean()
        assert float(late) == pytest.approx(np.mean(values[250:]), abs=0.1)
        assert values[0] == pytest.approx(float(found.line.objective[k]))
    torch.testing.assert_close(found.terms.objective, found.history.objective[-1])


def test_our_search_beats_the_published_one():
    log_prob, _ = modes()
    start, end = ends(64)
    ours = likelihood_path(log_prob, start, end)
    published = likelihood_path(log_prob, start, end, method="original")
    assert (ours.terms.objective < published.terms.objective + 1e-3).double().mean() > 0.9
    # Of the largest spread, between modes, rounding decides.
    assert ours.terms.spread.max() < published.terms.spread.max() + 1e-3
    assert ours.terms.spread.median() < 0.5 * published.terms.spread.median()


def test_the_mean_is_the_sum_for_eight_points():
    log_prob, _ = modes()
    start, end = ends(4)
    total = likelihood_path(log_prob, start, end)
    mean = likelihood_path(log_prob, start, end, reduction="mean")
    assert torch.equal(total.points, mean.points)
    # With many points the sum outweighs the length, the mean does not.
    many = [
        likelihood_path(log_prob, start, end, 40, reduction=kind, iterations=100)
        for kind in ("sum", "mean")
    ]
    assert many[0].terms.length.mean() > 1.05 * many[1].terms.length.mean()


def test_typical_paths_stay_where_draws_lie():
    """In 64 dimensions draws have length 8; the most probable points lie at the origin."""
    make = torch.Generator().manual_seed(0)
    draws = torch.randn(10_000, 64, generator=make, dtype=torch.float64)
    level = typical_level(normal, draws)
    assert level == pytest.approx(32 * LOG_2PI + 0.5 * 83.68, abs=1)  # chi-squared, 95 %
    start, end = draws[:8], draws[8:16]
    options = {"length_weight": 0.1, "spread_weight": 1.0}
    plain = likelihood_path(normal, start, end, **options)
    typical = likelihood_path(normal, start, end, **options, typical=level)
    middle = [found.points[:, 1:-1].norm(dim=2).mean() for found in (plain, typical)]
    assert middle[0] < 0.5 * middle[1]
    line = (start + end).norm(dim=1).mean() / 2
    assert middle[1] > 0.9 * line


def test_settled_paths_stay():
    """Equal ends at the mode: nothing moves, so the search ends at its first look."""
    found = likelihood_path(normal, rows([0, 0]), rows([0, 0]), starts=())
    assert found.iterations.tolist() == [50] and bool(found.converged)
    assert float(found.history.objective[-1]) == pytest.approx(8 * LOG_2PI)
    going = likelihood_path(normal, rows([0, 0], [-1, 2]), rows([0, 0], [2, 1]), starts=())
    assert going.iterations.tolist() == [50, 300]


def test_a_start_without_density_is_left():
    """Nothing is known of the line, whose gradient is NaN; the bent starts go on."""

    def log_prob(z: Tensor) -> Tensor:
        return torch.where(z[:, 1].abs() > 0.05, normal(z), torch.nan)

    found = likelihood_path(log_prob, rows([-1, 0]), rows([1, 0]), 5)
    assert found.chosen.item() > 0 and torch.stack(found.terms).isfinite().all()
    assert found.line.objective.isnan().all()


def test_ways_through_data():
    """Around a ring of data, not across it."""
    angle = torch.linspace(0, 2 * math.pi, 201)[:-1].double()
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    start, end = rows([-2.1, 0.1]), rows([2.1, 0.1])
    way = through_data(ring, start, end, 30)
    assert way.shape == (1, 30, 2)
    assert np.abs(np.linalg.norm(way, axis=2) - 2).max() < 0.15
    steps = np.linalg.norm(np.diff(way[0], axis=0), axis=1)
    assert steps.max() < 1.1 * steps.min()


def test_shortest_paths_of_graphs():
    """A square with a long diagonal edge; a node that hangs apart."""
    edges = np.array([[0, 1], [1, 2], [2, 3], [0, 3], [0, 2]])
    weights = np.array([1.0, 1, 1, 5, 3])
    ((path, gone),) = shortest_paths(edges, weights, np.array([0]), np.array([3]), 5)
    assert path.tolist() == [0, 1, 2, 3] and gone.tolist() == [0, 1, 2, 3]
    ((path, gone),) = shortest_paths(edges, weights, np.array([0]), np.array([4]), 5)
    assert path.tolist() == [0, 4] and np.isinf(gone[-1])
    corners = np.array([[0.0, 0], [1, 0], [1, 3]])
    even = evenly_along(corners, np.array([0.0, 1, 4]), np.array([0, 0.5, 1]))
    assert even.tolist() == [[0, 0], [1, 1], [1, 3]]
    apart = torch.tensor([[0.0], [1], [10], [11]])
    joined = {tuple(edge) for edge in neighbour_edges(apart, 1).tolist()}
    assert joined == {(0, 1), (1, 2), (2, 3)}


GOOD = rows([0, 0]), rows([1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "complaint"),
    [
        ((normal, *GOOD, 0), {}, ValueError, "n must be at least 1"),
        ((normal, GOOD[0][0], GOOD[1][0]), {}, ValueError, r"must both be \(k, d\)"),
        ((normal, GOOD[0].half(), GOOD[1].half()), {}, TypeError, "float32 or float64"),
        ((normal, GOOD[0], GOOD[1].float()), {}, ValueError, "one dtype"),
        ((normal, GOOD[0], GOOD[1] / 0), {}, ValueError, "end must be finite"),
        ((lambda z: z, *GOOD), {}, ValueError, r"must map points \(m, d\) to \(m,\)"),
        ((lambda z: z.detach()[:, 0], *GOOD), {}, ValueError, "must be differentiable"),
        ((normal, *GOOD), {"method": "sgd"}, ValueError, "one of adam, original; got 'sgd'"),
        ((normal, *GOOD), {"reduction": "max"}, ValueError, "one of sum, mean"),
        ((normal, *GOOD), {"length_weight": -1}, ValueError, "length_weight must be finite"),
        ((normal, *GOOD), {"spread_weight": math.nan}, ValueError, "spread_weight must be finite"),
        ((normal, *GOOD), {"typical": math.inf}, ValueError, "typical must be a finite number"),
        ((normal, *GOOD), {"iterations": 0}, ValueError, "iterations must be at least 1"),
        ((normal, *GOOD), {"rate": 0.0}, ValueError, "rate must be positive"),
        ((normal, *GOOD), {"starts": ("graph",)}, ValueError, "'graph' needs data"),
        ((normal, *GOOD), {"starts": ("curve",)}, ValueError, "some of line, bent, graph, random"),
        ((normal, *GOOD), {"data": torch.zeros(3, 1)}, ValueError, r"data must be \(m, 2\)"),
    ],
)
def test_errors(arguments, options, error, complaint):
    with pytest.raises(error, match=complaint):
        likelihood_path(*arguments, **options)
