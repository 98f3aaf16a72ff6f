"""Minimisers of many independent problems at once, each with steps and a stop of its own."""

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

ARMIJO = 1e-4  # share of the promised decrease that a step must bring
HALVINGS = 10
MEMORY = 8  # pairs of steps and gradient differences that L-BFGS remembers


class Status(IntEnum):
    """How the search for one curve ended."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    STALLED = 2  # no step along the direction gives a representable decrease
    NON_FINITE = 3
    DEGENERATE = 4  # start and end are the same point
    UNRESOLVED = 5  # even the finest grid of the search misses part of the curve's length


Precondition = Callable[[Tensor, Tensor], Tensor]  # (gradient, rows) -> like gradient


class Objective(Protocol):
    """Values of n independent problems in x (n, ...)."""

    def __call__(self, x: Tensor, rows: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Values (r,) of the problems `rows` (r,) at x (r, ...), and gradients like x."""
        ...


class Minimum(NamedTuple):
    """Where n problems ended."""

    x: Tensor  # (n, ...)
    value: Tensor  # (n,)
    initial: Tensor  # (n,), the value at the start
    status: Tensor  # (n,) int64 of Status
    iterations: Tensor  # (n,) int64
    values: Tensor  # (n,) int64, evaluations of the value alone
    gradients: Tensor  # (n,) int64, evaluations of value and gradient
    gradient: Tensor  # (n, ...), at x
    promise: Tensor  # (n,), the decrease that the last step looked for

    def resumed(self, rows: Tensor, later: "Minimum") -> None:
        """Adds another search of the problems `rows`, and takes what it found lower."""
        for count in ("iterations", "values", "gradients"):
            getattr(self, count)[rows] += getattr(later, count)
        lower = later.value < self.value[rows]
        for name in ("x", "value", "status", "gradient", "promise"):
            getattr(self, name)[rows[lower]] = getattr(later, name)[lower]


class _Search:
    """What both minimisers keep: points, counts, and which problems are still open."""

    def __init__(self, objective: Objective, x: Tensor):
        self.objective = objective
        n = len(x)
        self.x = x.clone()
        self.status = torch.full((n,), int(Status.MAX_ITERATIONS), device=x.device)
        self.iterations, self.values, self.gradients = self.status.new_zeros(3, n).unbind(0)
        everything = torch.arange(n, device=x.device)
        self.value, self.gradient = self.evaluate(self.x, everything)
        self.initial = self.value.clone()
        self.promise = torch.zeros_like(self.value)
        self.open = torch.ones(n, dtype=torch.bool, device=x.device)
        self.close(everything[~self.value.isfinite()], Status.NON_FINITE)

    def evaluate(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients at x, counted."""
        self.gradients[rows] += 1
        value, gradient = self.objective(x, rows, True)
        assert gradient is not None
        return value, gradient

    def evaluate_value(self, x: Tensor, rows: Tensor) -> Tensor:
        self.values[rows] += 1
        return self.objective(x, rows, False)[0]

    def close(self, rows: Tensor, status: Status) -> None:
        self.status[rows] = int(status)
        self.open[rows] = False

    def rows(self) -> Tensor:
        return self.open.nonzero()[:, 0]

    def minimum(self) -> Minimum:
        return Minimum(
            self.x,
            self.value,
            self.initial,
            self.status,
            self.iterations,
            self.values,
            self.gradients,
            self.gradient,
            self.promise,
        )


def lbfgs(
    objective: Objective,
    x: Tensor,  # (n, ...)
    precondition: Precondition,
    tolerance: float,
    max_iterations: int,
) -> Minimum:
    """L-BFGS from the inverse Hessian `precondition`, with Armijo's rule for each problem.

    A problem has converged when the decrease that its direction promises, -g.p, is below
    `tolerance` times its value (J. Nocedal and S. Wright, "Numerical Optimization", 2006, algorithm
    7.4). Problems that are done stay bit for bit where they are.
    """
    search = _Search(objective, x)
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    for _ in range(max_iterations):
        rows = search.rows()
        if not len(rows):
            break
        gradient = search.gradient[rows]
        past = [(step[rows], change[rows], weight[rows]) for step, change, weight in history]
        direction = -_two_loops(gradient, rows, past, precondition)
        slope = dot(gradient, direction)
        uphill = ~(slope < 0)
        if uphill.any():
            direction[uphill] = -precondition(gradient[uphill], rows[uphill])
            slope = dot(gradient, direction)
        search.promise[rows] = -slope
        flat = -slope <= tolerance * search.value[rows]
        unknown = slope.isnan()  # a gradient that is not finite
        search.close(rows[flat], Status.CONVERGED)
        search.close(rows[unknown], Status.STALLED)
        left = ~(flat | unknown)
        rows, direction, slope, gradient = (
            part[left] for part in (rows, direction, slope, gradient)
        )
        if not len(rows):
            break
        before = search.x[rows]
        moved = _line_search(search, rows, direction, slope)
        search.iterations[rows[moved]] += 1
        search.close(rows[~moved], Status.STALLED)
        _remember(history, search, rows[moved], before[moved], gradient[moved])
    return search.minimum()


def _line_search(search: _Search, rows: Tensor, direction: Tensor, slope: Tensor) -> Tensor:
    """Moves the problems along their directions; which of them found a step that is good enough."""
    start, value = search.x[rows], search.value[rows]
    # The whole step is accepted nearly always, so its gradient is computed along with its value.
    trial = start + direction
    trial_value, trial_gradient = search.evaluate(trial, rows)
    moved = trial_value <= value + ARMIJO * slope
    hit = rows[moved]
    search.x[hit], search.value[hit] = trial[moved], trial_value[moved]
    search.gradient[hit] = trial_gradient[moved]

    left, size = (~moved).nonzero()[:, 0], 1.0
    late = []
    for _ in range(HALVINGS):
        if not len(left):
            break
        size /= 2
        trial = start[left] + size * direction[left]
        trial_value = search.evaluate_value(trial, rows[left])
        good = trial_value <= value[left] + ARMIJO * size * slope[left]
        search.x[rows[left[good]]] = trial[good]
        late.append(left[good])
        left = left[~good]
    if late and len(found := torch.cat(late)):
        moved[found] = True
        hit = rows[found]
        search.value[hit], search.gradient[hit] = search.evaluate(search.x[hit], hit)
    return moved


def _remember(
    history: deque[tuple[Tensor, Tensor, Tensor]],
    search: _Search,
    rows: Tensor,
    before: Tensor,
    gradient: Tensor,
) -> None:
    """Adds the last step and change of gradient, without weight where the curvature is negative."""
    step, change = torch.zeros_like(search.x), torch.zeros_like(search.x)
    weight = torch.zeros_like(search.value)
    step[rows], change[rows] = search.x[rows] - before, search.gradient[rows] - gradient
    product = dot(step, change)
    weight[product > 0] = 1 / product[product > 0]
    history.append((step, change, weight))


def _two_loops(
    gradient: Tensor,  # (r, ...), of the problems `rows`
    rows: Tensor,  # (r,)
    history: list[tuple[Tensor, Tensor, Tensor]],  # of the same problems
    precondition: Precondition,
) -> Tensor:
    """The inverse Hessian of L-BFGS times the gradient."""
    q, shares = gradient, []
    for step, change, weight in reversed(history):
        share = weight * dot(step, q)
        q = q - wide(share, change) * change
        shares.append(share)
    q = precondition(q, rows)
    for (step, change, weight), share in zip(history, reversed(shares), strict=True):
        q = q + wide(share - weight * dot(change, q), step) * step
    return q


def adam(
    objective: Objective,
    x: Tensor,  # (n, ...)
    scale: Tensor,  # (n,), length of a unit step for each problem
    tolerance: float,
    max_iterations: int,
    rate: float = 0.03,
) -> Minimum:
    """Adam in units of `scale`, its rate falling to a tenth; the best point of each problem.

    For objectives without curvature to learn from. A problem has converged when ten steps have
    not lowered its value by `tolerance` of it.
    """
    search = _Search(objective, x)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    point, gradient = search.x.clone(), search.gradient.clone()
    mark = search.value.clone()
    for step in range(1, max_iterations + 1):
        rows = search.rows()
        if not len(rows):
            break
        unit = wide(scale[rows], x)
        g = gradient[rows] * unit
        first[rows] = torch.lerp(first[rows], g, 0.1)
        second[rows] = torch.lerp(second[rows], g.square(), 0.001)
        mean, spread = first[rows] / (1 - 0.9**step), second[rows] / (1 - 0.999**step)
        size = rate * 0.1 ** (step / max_iterations)
        point[rows] -= size * unit * mean / (spread.sqrt() + 1e-12)
        value, gradient[rows] = search.evaluate(point[rows], rows)
        search.iterations[rows] += 1
        better = value < search.value[rows]
        hit = rows[better]
        search.x[hit], search.value[hit] = point[hit], value[better]
        search.gradient[hit] = gradient[hit]
        search.close(rows[~value.isfinite()], Status.STALLED)
        if step % 10 == 0:
            rows = search.rows()
            search.promise[rows] = mark[rows] - search.value[rows]
            slow = search.promise[rows] <= tolerance * search.value[rows]
            search.close(rows[slow], Status.CONVERGED)
            mark = search.value.clone()
    return search.minimum()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of n tensors: (n, ...) -> (n,)."""
    return (a * b).flatten(1).sum(1)


def wide(scalars: Tensor, like: Tensor) -> Tensor:
    """(n,) as a factor of (n, ...)."""
    return scalars.reshape(-1, *(1,) * (like.dim() - 1))
