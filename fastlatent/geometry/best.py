"""What a search for shorter curves finds, and the shortest of each pair while it goes on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlatent.geometry.curves import Curves
from fastlatent.geometry.descent import Minimum, Status
from fastlatent.geometry.length import Measured, measure
from fastlatent.geometry.metric import Embedding, Metric

MEASURED_SEGMENTS = 16  # of the coarsest grid on which curves to start from are measured
GRID_ERROR = 0.01  # share of the length that the grid of a search may miss
LEAST_CURVATURE = 0.05  # smaller ones are not told from it


@dataclass(frozen=True, eq=False)
class Geodesics:
    """One curve for each of n pairs, the shortest found; never longer than the straight line, where
    that has a length.

    Except by method "original", whose curves are the shortest by its own sum, and may be longer.
    """

    control: Tensor  # (n, k, d)
    knots: Tensor  # (k + 4,), shared
    length: Tensor  # (n,)
    length_error: Tensor  # (n,), estimate: of measuring, and of what the search left
    straight_length: Tensor  # (n,)
    straight_error: Tensor  # (n,), estimate
    energy: Tensor  # (n,), of the chords that the search saw
    iterations: Tensor  # (n,) int64
    evaluations: Tensor  # (n,) int64, of the decoder; a backward pass counts as 2, a JVP as 3
    status: Tensor  # (n,) int64 of Status: how the search for the curve ended
    history: Tensor  # (levels + 1, n): shortest length so far, that of the straight line first

    @property
    def curves(self) -> Curves:
        return Curves(self.control, self.knots)

    @property
    def improvement(self) -> Tensor:
        """(straight - length) / straight, (n,); 0 where both are 0, NaN where straight is not
        finite."""
        gain = (self.straight_length - self.length) / self.straight_length
        return torch.where(self.straight_length == 0, 0, gain)

    @property
    def energy_excess(self) -> Tensor:
        """energy / length^2 - 1, (n,): how uneven the chords are; NaN where there is no length."""
        return self.energy / self.length.square() - 1

    @property
    def converged(self) -> Tensor:
        """(n,) bool."""
        return self.status == int(Status.CONVERGED)

    def __len__(self) -> int:
        return len(self.control)


class Best:
    """The shortest curve of each pair so far, by measured length, and how it was found.

    At first the shortest of the candidates from which the search starts, of which the straight line
    is the first. A curve whose length is not finite is never taken for one that has a length.
    """

    def __init__(self, metric: Metric, candidates: list[Curves], spans: int, rtol: float):
        line = candidates[0]
        self.metric, self.spans, self.rtol = metric, spans, rtol
        measured = measure(metric, line, rtol=rtol, segments=MEASURED_SEGMENTS)
        point = (line.start == line.end).all(1)
        for value in (measured.length, measured.error):
            value[point] = 0  # where rounding along the line leaves a little
        self.straight = measured
        self.length = measured.length.nan_to_num(torch.inf, torch.inf)
        self.error, self.evaluations = measured.error.clone(), measured.evaluations.clone()
        self.curves = line.refine(spans)
        self.energy = torch.full_like(self.length, torch.nan)
        self.iterations = torch.zeros_like(measured.evaluations)
        self.status = torch.full_like(self.iterations, int(Status.MAX_ITERATIONS))
        self.holder = torch.zeros_like(self.status)  # the candidate that the curve came from
        for candidate, curves in enumerate(candidates[1:], 1):
            rows = (~point).nonzero()[:, 0]
            found = measure(metric, curves[rows], rtol=rtol, segments=MEASURED_SEGMENTS)
            self.evaluations[rows] += found.evaluations
            self._take(candidate, rows, curves[rows], found)
        self.status[point] = int(Status.DEGENERATE)
        self.history = [measured.length.clone()]

    def open(self) -> Tensor:
        """The pairs between which there is something to find."""
        return (self.status == int(Status.MAX_ITERATIONS)).nonzero()[:, 0]

    def offer(
        self,
        candidate: int,
        rows: Tensor,
        curves: Curves,
        found: Minimum,
        curvature: Tensor,  # (r,), the least that was found; that of a flat metric is 1
        segments: int,
    ) -> tuple[Tensor, Tensor]:
        """Measures the curves of the pairs `rows`, and takes those that are shorter.

        Returns their lengths (r,), and which the grid of the search missed a part of, (r,) bool.
        """
        measured = measure(self.metric, curves, rtol=self.rtol, segments=segments)
        # A Newton step promises twice what is there, and the square root of an energy halves that
        # again. The rest is room; where curvature is small the step was too short. What a search
        # that stalled had been promised is not to be had.
        left = found.promise / found.value / curvature.clamp(LEAST_CURVATURE, 1)
        left[found.status == int(Status.STALLED)] = 0
        error = measured.error + measured.length * left.nan_to_num(0).clamp(0, 1)
        measured = measured._replace(error=error)
        better = self._take(candidate, rows, curves, measured)
        self.energy[rows[better]] = found.value[better]
        self.iterations[rows] += found.iterations
        points = (found.values + 3 * found.gradients) * (segments - 1)
        self.evaluations[rows] += points + measured.evaluations
        seen = (measured.length - measured.grid).abs() <= GRID_ERROR * measured.length
        mine = (self.holder[rows] == candidate) & self.length[rows].isfinite()
        held, initial = rows[mine], found.initial[mine]
        self.energy[held] = torch.where(self.energy[held].isnan(), initial, self.energy[held])
        status = torch.where(seen, found.status, int(Status.UNRESOLVED))
        # Of a search that could not begin: the curve itself is finite.
        status[found.status == int(Status.NON_FINITE)] = int(Status.STALLED)
        self.status[held] = status[mine]
        return measured.length, ~seen

    def _take(self, candidate: int, rows: Tensor, curves: Curves, measured: Measured) -> Tensor:
        """Takes those of the curves that are shorter, and returns which: (r,) bool."""
        better = measured.length < self.length[rows]
        win = rows[better]
        self.length[win], self.error[win] = measured.length[better], measured.error[better]
        self.curves.control[win] = curves[better].refine(self.spans).control
        self.holder[win] = candidate
        return better

    def note(self) -> None:
        """Adds the lengths so far to the history."""
        self.history.append(self.known)

    @property
    def known(self) -> Tensor:
        """The lengths (n,), of the straight line where none is finite."""
        return torch.where(self.length.isfinite(), self.length, self.straight.length)

    @torch.no_grad()
    def result(self, entries: int) -> Geodesics:
        """What was found; the history filled up to that many entries."""
        self.history += [self.known] * (entries - len(self.history))
        self.energy[self.status == int(Status.DEGENERATE)] = 0
        self.status[~self.length.isfinite()] = int(Status.NON_FINITE)
        unresolved = (self.status == int(Status.UNRESOLVED)).nonzero()[:, 0]
        # How short the geodesic may be: as short as the chord between the ends, where there is one.
        excess = self.length[unresolved] - self._chords(unresolved)
        self.error[unresolved] = torch.maximum(self.error[unresolved], excess)
        return Geodesics(
            self.curves.control,
            self.curves.knots,
            self.known,
            self.error,
            self.straight.length,
            self.straight.error,
            self.energy,
            self.iterations,
            self.evaluations,
            self.status,
            torch.stack(self.history),
        )

    def _chords(self, rows: Tensor) -> Tensor:
        """Distances between the decoded ends, below which no curve of the pairs is; 0 without."""
        if not isinstance(self.metric, Embedding) or not len(rows):
            return self.length.new_zeros(len(rows))
        ends = self.curves.control[rows][:, [0, -1]].flatten(0, 1)
        return self.metric.output(ends).unflatten(0, (-1, 2)).diff(dim=1)[:, 0].norm(dim=1)
