"""Energies of curves as functions of their control points, and what conditions them."""

import torch
from torch import Tensor

from fastlatent.geometry.curves import Curves
from fastlatent.geometry.length import gauss_nodes, midpoints, speeds_squared
from fastlatent.geometry.metric import Embedding, Metric
from fastlatent.geometry.precision import full_precision
from fastlatent.ops import polyline_energy

METRIC_POINTS = 5  # of the straight line, for the preconditioner
RIDGE = 1e-3  # added to the diagonal of that metric, as a part of each entry


class Energy:
    """Energies of curves as functions of their inner control points."""

    def __init__(self, metric: Metric, curves: Curves, segments: int):
        self.metric, self.curves = metric, curves
        self.t = torch.linspace(
            0, 1, segments + 1, dtype=curves.control.dtype, device=curves.control.device
        )
        if isinstance(metric, Embedding):
            with torch.no_grad():
                ends = metric.output(curves.control[:, [0, -1]].flatten(0, 1))
            self.ends = ends.unflatten(0, (-1, 2))  # (n, 2, D)

    def __call__(self, x: Tensor, rows: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """See `descent.Objective`."""
        with torch.set_grad_enabled(gradient), full_precision(x.device.type):
            if gradient:
                x = x.detach().requires_grad_(True)
            energy = self._energy(x, rows)
            slope = torch.autograd.grad(energy.sum(), x)[0] if gradient else None
        return energy.detach(), slope

    def _energy(self, x: Tensor, rows: Tensor) -> Tensor:
        ends = self.curves.control[rows]
        control = torch.cat([ends[:, :1], x, ends[:, -1:]], 1)
        curves = Curves(control, self.curves.knots)
        if not isinstance(self.metric, Embedding):
            return speeds_squared(self.metric, curves, midpoints(curves, len(self.t) - 1)).mean(1)
        z = curves.points(self.t[1:-1])
        inner = self.metric.output(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        ends = self.ends[rows]
        return polyline_energy(torch.cat([ends[:, :1], inner, ends[:, 1:]], 1))

    def stiffness(self) -> Tensor:
        """Cholesky factor of the integrals of N'_k N'_l over the inner basis functions."""
        curves = self.curves
        k = curves.control.shape[1]
        unit = torch.eye(k, dtype=self.t.dtype, device=self.t.device)[None]
        nodes, weights = gauss_nodes(curves)
        slopes = Curves(unit, curves.knots).derivative(nodes)[0, :, 1:-1]  # (m, k - 2)
        return torch.linalg.cholesky(slopes.mT @ (weights[:, None] * slopes))


def mean_metric_factor(metric: Metric, line: Curves) -> Tensor:
    """Cholesky factors (n, d, d) of the mean metric along straight lines, made definite."""
    n, _, d = line.control.shape
    t = midpoints(line, METRIC_POINTS)
    with torch.no_grad():
        matrix = metric.matrix(line.points(t).flatten(0, 1)).unflatten(0, (n, -1)).mean(1)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    usable = (matrix.isfinite().all(2).all(1, keepdim=True) & (mean > 0)).expand_as(diagonal)
    # Each dimension in units of its own, so that those of the latents change no step.
    units = torch.where(diagonal > 0, diagonal, mean).where(usable, 1.0).sqrt()
    unit = torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(usable[:, :1, None], matrix / (units[:, :, None] * units[:, None]), 0)
    factor, failed = torch.linalg.cholesky_ex(matrix + RIDGE * unit)
    factor = torch.where(usable[:, :1, None] & (failed[:, None, None] == 0), factor, unit)
    return units[:, :, None] * factor
