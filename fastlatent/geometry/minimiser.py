"""How the energy of curves with given knots is lowered, and how saddles of it are left.

A line over the middle of a hill is a critical point of the energy: no gradient leads off it. What
does is a direction of negative curvature. Lanczos's method finds it from a few gradients, in the
inner product of the preconditioner, where every curvature of a flat metric is 1 (G. Golub and C.
Van Loan, "Matrix Computations", 2013, section 10.1; the generalised problem by B-orthogonality).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastlatent.geometry.curves import Curves
from fastlatent.geometry.descent import (
    Minimum,
    Objective,
    Precondition,
    Status,
    adam,
    dot,
    lbfgs,
    wide,
)
from fastlatent.geometry.energy import Energy
from fastlatent.geometry.metric import Metric

Method = Literal["lbfgs", "adam", "original"]

LANCZOS_STEPS = 2
NEGATIVE = -1e-2  # curvature below which a point is no minimum; that of a flat metric is 1
OFF = 0.02  # of the ends' distance: how far off a saddle to begin anew
BOWS = (-0.4, -0.1, 0.1, 0.4)  # of that distance: how far curves are bowed to see past a hill
ESCAPES = 3  # from one saddle after the other


@dataclass(frozen=True)
class Minimiser:
    """Lowers energies on grids of any number of segments."""

    metric: Metric
    method: Method
    segments: int
    tolerance: float
    max_iterations: int | None
    seed: int

    def __call__(
        self, curves: Curves, mean_metric: Tensor, segments: int, leave_saddles: bool
    ) -> tuple[Minimum, Tensor]:
        """The inner control points (n, k - 2, d) of least energy on that many segments.

        With them the least curvature found (n,), NaN where it was not looked for.
        """
        energy = Energy(self.metric, curves, segments)
        stiffness = energy.stiffness()
        axis = curves.end - curves.start

        def precondition(gradient: Tensor, rows: Tensor) -> Tensor:
            step = torch.cholesky_solve(gradient.mT, mean_metric[rows]).mT
            return torch.cholesky_solve(step / 2, stiffness.expand(len(rows), -1, -1))

        def descend(x: Tensor, chosen: Tensor) -> Minimum:
            def part(x: Tensor, rows: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
                return energy(x, chosen[rows], gradient)

            if self.method == "adam":
                limit = self.max_iterations or 200
                return adam(part, x, axis[chosen].norm(dim=1), self.tolerance, limit)
            limit = self.max_iterations or 20
            return lbfgs(
                part, x, lambda g, rows: precondition(g, chosen[rows]), self.tolerance, limit
            )

        rows = torch.arange(len(curves), device=curves.control.device)
        found = descend(curves.control[:, 1:-1], rows)
        curvature = torch.full_like(found.value, torch.nan)
        if leave_saddles:
            ended = (found.status == int(Status.CONVERGED)) | (found.status == int(Status.STALLED))
            rows = rows[ended]
            for _ in range(ESCAPES):
                if not len(rows):
                    break
                start, curvature[rows], left = self._off_saddles(
                    energy, found, precondition, axis, rows
                )
                start, rows = start[left], rows[left]
                if len(rows):
                    found.resumed(rows, descend(start, rows))
        return found, curvature

    def _off_saddles(
        self,
        energy: Objective,
        found: Minimum,
        precondition: Precondition,
        axis: Tensor,  # (n, d), from start to end
        rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Starts of less energy for the problems `rows`, the least curvature at where they are, and
        which of them have such a start, (r,) bool.

        One is a little off a saddle, in its softest direction. The others are bowed to either side:
        the middle of a hill with a flat top, or with a tip between two points of the grid, is a
        minimum among curves nearby. The search goes on from the best.
        """
        x, value = found.x[rows], found.value[rows]
        make = torch.Generator().manual_seed(self.seed)
        # The same for all, so that a pair's result does not depend on its neighbours.
        noise = torch.randn(x.shape[1:], generator=make, dtype=torch.float64).to(x)
        reach = axis[rows].norm(dim=1)

        def gradients(y: Tensor) -> Tensor:
            gradient = energy(y, rows, True)[1]
            assert gradient is not None
            return gradient

        direction, curvature = softest(
            gradients,
            x,
            found.gradient[rows],
            lambda g: precondition(g, rows),
            noise,
            reach,
        )
        found.gradients[rows] += LANCZOS_STEPS
        best, start = value.clone(), x.clone()
        bow = _sideways(direction, axis[rows])
        for size in BOWS:
            trial = x + wide(size * reach, x) * bow
            found.values[rows] += 1
            trial_value = energy(trial, rows, False)[0]
            lower = trial_value < best
            start[lower], best[lower] = trial[lower], trial_value[lower]
        broken = ~found.gradient[rows].isfinite().all((1, 2))  # as at the tip of a cone
        near = ((curvature < NEGATIVE) | broken) & (best == value)
        start[near] = (x + wide(OFF * reach, x) * direction)[near]
        return start, curvature, near | (best < value)


def softest(
    gradients: Callable[[Tensor], Tensor],
    x: Tensor,  # (n, k, d)
    gradient: Tensor,  # (n, k, d) there
    precondition: Callable[[Tensor], Tensor],
    noise: Tensor,  # (k, d)
    reach: Tensor,  # (n,), the size of what x describes
) -> tuple[Tensor, Tensor]:
    """The direction of least curvature (n, k, d), its longest row of length 1, and that (n,).

    Lanczos from the noise, with differences of gradients for products with the Hessian.
    """
    residual = noise.expand_as(x)
    direction = precondition(residual)
    before, basis = torch.zeros_like(x), []
    matrix = torch.zeros(len(x), LANCZOS_STEPS, LANCZOS_STEPS, dtype=torch.float64, device=x.device)
    least = torch.finfo(x.dtype).tiny
    for i in range(LANCZOS_STEPS):
        norm = dot(residual, direction).clamp_min(least).sqrt()
        residual, direction = residual / wide(norm, x), direction / wide(norm, x)
        step = wide(torch.finfo(x.dtype).eps ** (1 / 3) * reach / _longest(direction), x)
        product = ((gradients(x + step * direction) - gradient) / step).nan_to_num(0, 0, 0)
        basis.append(direction)
        matrix[:, i, i] = dot(direction, product)
        if i:
            matrix[:, i, i - 1] = norm  # all that eigh reads
            product = product - wide(norm, x) * before
        before = residual
        residual = product - wide(matrix[:, i, i].to(x), x) * residual
        direction = precondition(residual)
    values, vectors = torch.linalg.eigh(matrix)
    along = torch.stack(basis, 1) * vectors[:, :, 0].to(x)[:, :, None, None]
    along = along.sum(1)
    return along / wide(_longest(along), x), values[:, 0].to(x)


def _longest(x: Tensor) -> Tensor:  # (n, k, d) -> (n,)
    """The length of the longest row, above 0."""
    return x.norm(dim=2).amax(1).clamp_min(torch.finfo(x.dtype).tiny)


def _sideways(direction: Tensor, axis: Tensor) -> Tensor:  # (n, 1, d)
    """The longest row of the direction (n, k, d) at right angles to the axis, of length 1."""
    unit = torch.nn.functional.normalize(axis, dim=1)[:, None]
    across = direction - (direction * unit).sum(2, keepdim=True) * unit
    longest = across.norm(dim=2).argmax(1)
    rows = torch.arange(len(across), device=across.device)
    return torch.nn.functional.normalize(across[rows, longest], dim=1)[:, None]
