"""The published procedure for shorter curves, for comparison.

M. Y. Michelis and Q. Becker, "On Linear Interpolation in the Latent Space of Deep Generative
Models", ICLR 2021 GTRL workshop, with the settings of their program: Adam on the inner nodes of a
cubic B-spline, two at first and ten at most, on a fixed grid whose points are jittered, curves
judged by the sum on that same grid (`curve_length(rule="original")`).

Two things differ from the program, neither of them in what is computed: all pairs run together,
and v^T M v comes from one JVP where the program forms M from D backward passes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlatent.geometry.curves import Curves, straight
from fastlatent.geometry.descent import Status
from fastlatent.geometry.length import original_energy, original_length
from fastlatent.geometry.metric import Metric

EPOCHS = 20
VALIDATE_EVERY = 5
MOST_NODES = 10  # inner control points at most
TRIES = 5  # restarts before a knot is inserted
GOOD_ENOUGH = 200  # a validation must gain the straight length over this
DECAY = 0.9  # of the learning rate after each epoch
SHRINK = 0.3  # of the learning rate at each restart
WEIGHT_DECAY = 1e-4
JITTER = 0.1  # standard deviation of the grid's noise, in units of its step


@dataclass(frozen=True, eq=False)
class Shortened:
    """What the procedure ends with, for n pairs."""

    curves: Curves
    history: Tensor  # (validations + 1, n): shortest length so far by the original's sum
    status: Tensor  # (n,) int64 of Status
    iterations: Tensor  # (n,) int64, Adam's steps
    evaluations: Tensor  # (n,) int64


def shorten(
    metric: Metric,
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
    noise: Tensor,  # (n, epochs, points), standard normal: shifts the grid's points
    validate_every: int = VALIDATE_EVERY,
) -> Shortened:
    """Shorter curves by the published procedure."""
    epochs, points = noise.shape[1:]
    pairs = _Pairs(metric, straight(start, end), points)
    history = [pairs.best_length.clone()]
    grid = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)
    shifts = JITTER / (points - 1) * noise.to(grid)
    for epoch in range(1, epochs + 1):
        if epoch % validate_every:
            pairs.train((grid + shifts[:, epoch - 1]).clamp(0, 1))
        else:
            pairs.validate()
            history.append(pairs.best_length.clone())
    return pairs.result(torch.stack(history))


class _Pairs:
    """State of the procedure, one row for each pair; pairs have from two to ten inner nodes.

    Knots are inserted in one order for all, so that those of a pair follow from their number.
    """

    def __init__(self, metric: Metric, line: Curves, points: int):
        self.metric, self.points = metric, points
        n, k, d = line.control.shape
        self.knots = {k: line.knots}
        spare = line.control.new_zeros(n, MOST_NODES + 2 - k, d)
        self.control = torch.cat([line.control, spare], 1)  # rows past a pair's count are unused
        self.best, self.count = self.control.clone(), torch.full((n,), k, device=spare.device)
        with torch.no_grad():
            self.best_length = original_length(metric, line, points)
        self.needed = self.best_length / GOOD_ENOUGH
        self.failures, self.iterations, self.evaluations = self.count.new_zeros(3, n).unbind(0)
        self.evaluations += 3 * points
        self.open = self.best_length.isfinite() & (line.start != line.end).any(1)
        self.rate = torch.ones_like(self.best_length)
        self.steps = torch.zeros_like(self.count)  # since Adam was made anew
        self.first, self.second = torch.zeros_like(self.control), torch.zeros_like(self.control)

    def _groups(self) -> list[tuple[Tensor, int]]:
        """The open pairs, by their number of control points."""
        open_rows = self.open.nonzero()[:, 0]
        counts = self.count[open_rows]
        return [(open_rows[counts == k], int(k)) for k in counts.unique()]

    def train(self, t: Tensor) -> None:
        """One step of Adam down the energy on the grid t (n, points)."""
        for rows, k in self._groups():
            control = self.control[rows, :k].requires_grad_(True)
            curves = Curves(control, self.knots[k])
            energy = original_energy(self.metric, curves, t[rows])
            (slope,) = torch.autograd.grad(energy.sum(), control)
            self._adam(rows, k, slope[:, 1:-1], control.detach()[:, 1:-1])
            self.evaluations[rows] += 9 * self.points
        self.rate *= DECAY

    def _adam(self, rows: Tensor, k: int, slope: Tensor, inner: Tensor) -> None:
        part = (rows, slice(1, k - 1))
        slope = slope + WEIGHT_DECAY * inner
        self.steps[rows] += 1
        self.iterations[rows] += 1
        steps = self.steps[rows][:, None, None].double()  # 1 - 0.999^1 loses digits in float32
        self.first[part] = torch.lerp(self.first[part], slope, 0.1)
        self.second[part] = torch.lerp(self.second[part], slope.square(), 0.001)
        mean = self.first[part] / (1 - 0.9**steps).to(slope.dtype)
        spread = (self.second[part] / (1 - 0.999**steps).to(slope.dtype)).sqrt()
        self.control[part] = inner - self.rate[rows][:, None, None] * mean / (spread + 1e-8)

    @torch.no_grad()
    def validate(self) -> None:
        """Keeps what is shorter; a round that gained too little starts again or gets a knot."""
        for rows, k in self._groups():
            curves = Curves(self.control[rows, :k], self.knots[k])
            length = original_length(self.metric, curves, self.points)
            self.evaluations[rows] += 3 * self.points
            before = self.best_length[rows]
            better = rows[length < before]
            self.best[better] = self.control[better]
            self.best_length[better] = length[length < before]
            failed = rows[~(before - length >= self.needed[rows])]
            again = failed[self.failures[failed] < TRIES]
            self.failures[again] += 1
            self._restart(again, SHRINK ** self.failures[again].double())
            spent = failed[self.failures[failed] >= TRIES]
            spent = spent[~torch.isin(spent, again)]
            full = self.count[spent] >= MOST_NODES + 2
            self.open[spent[full]] = False
            self._insert(spent[~full], k)

    def _restart(self, rows: Tensor, rate: Tensor) -> None:
        """From the best curve, with a new Adam."""
        self.control[rows] = self.best[rows]
        self.rate[rows] = rate.to(self.rate.dtype)
        self.steps[rows] = 0
        self.first[rows], self.second[rows] = 0, 0

    def _insert(self, rows: Tensor, k: int) -> None:
        """One more knot, in the middle of the widest span."""
        if not len(rows):
            return
        curves = Curves(self.best[rows, :k], self.knots[k])
        finer = curves.refine(curves.spans + 1)
        self.knots[k + 1] = finer.knots
        self.best[rows, : k + 1] = finer.control
        self.count[rows], self.failures[rows] = k + 1, 0
        self._restart(rows, torch.ones_like(self.rate[rows]))

    def result(self, history: Tensor) -> Shortened:
        """The best curves on the knots of the one that has most."""
        most = int(self.count.max()) if len(self.count) else 4
        control = self.best[:, :most].clone()
        for k in self.count.unique().tolist():
            rows = (self.count == k).nonzero()[:, 0]
            part = Curves(self.best[rows, :k], self.knots[k]).refine(most - 3)
            control[rows] = part.control
        status = torch.where(self.open, int(Status.MAX_ITERATIONS), int(Status.CONVERGED))
        return Shortened(
            Curves(control, self.knots[most]), history, status, self.iterations, self.evaluations
        )
