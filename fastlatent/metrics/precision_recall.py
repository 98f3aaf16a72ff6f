"""How much of one set of features lies near another: precision, recall, density and coverage.

T. Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models",
NeurIPS 2019; M. F. Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models",
ICML 2020. A set stands for its law by balls around its samples, each as wide as the distance to the
k-th nearest other sample; a sample is near the set if it lies inside one of its balls:

    precision  fraction of fake samples inside balls of real ones
    recall     fraction of real samples inside balls of fake ones
    density    mean number of real balls that a fake sample lies in, divided by k
    coverage   fraction of real balls with a fake sample inside

A sample at the very distance of the k-th neighbour lies outside the ball, as in the prdc of Naeem
et al. With `closed` it lies inside, as in torch-fidelity. The two differ where distances are equal:
among copies, and for features that are whole numbers.

Decisions are exact, as `fastlatent.metrics.distances` says: they equal those of float64 distances.
All take O((n + m) k) memory beyond the features and a few blocks of distances.

**Errors.** A standard error holds the choice of both sets, taken as independent unless they are
paired: they are split at random into halves, pairs as one, and the number is made from one half of
each and from the other. A quarter of the mean squared difference over many splits is the variance
of the number. This holds as far as the variance falls as 1 / n. No distance is computed again for
it. In simulations it was 0.7 to 1.15 times the spread over new samples; the least where a few
outliers make the number, or where coverage is near 1. The density's was 0.73 to 0.87 times it for
clustered sets and for fewer samples than features: two errors cover 85 to 90 % there. Where most
distances are equal it was 0.7 to 1.3 times the spread with open balls; with closed ones it can be
far off, as the neighbours that are known may end among equals. Sets of fewer than 4 (k + 1) samples
have no error, as their halves are too small: 16 for k = 3, 24 for k = 5. (Resampling with
replacement does not serve, as copies have distance 0: A. Abadie, G. Imbens 2008. Leaving out one
sample at a time overstates, here up to 2.5 times: B. Efron, C. Stein 1981.)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.estimate import Estimate
from fastlatent.metrics.balls import Balls, Halves, Realism
from fastlatent.metrics.distances import Block, distance_blocks, nearest_neighbours
from fastlatent.metrics.sets import (
    check_counts,
    check_paired,
    check_sets,
    plain_arithmetic,
)
from fastlatent.metrics.units import unit_scale

_SPLITS = 32  # into halves: their number leaves an error of 12 % in a standard error


class PrecisionRecall(NamedTuple):
    """Fractions of the samples that lie near the other set."""

    precision: Estimate
    recall: Estimate


class DensityCoverage(NamedTuple):
    """How many real balls hold a fake sample, and how many of them hold any."""

    density: Estimate  # 1 on average for equal laws; may exceed 1
    coverage: Estimate


def precision_recall(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    k: int = 3,
    *,
    paired: bool = False,  # each row of fake is made from the same row of real
    closed: bool = False,  # samples on the surface of a ball lie inside
) -> PrecisionRecall:
    """Improved precision and recall. Raises ValueError for bad sets, and fewer than k + 1 rows."""
    check_counts("precision_recall", k=k)
    check_sets("precision_recall", real, fake, k + 1)
    near = Neighbourhoods(real, fake, (k,), paired=paired, closed=closed)
    return near.precision_recall(k)


def density_coverage(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    k: int = 5,
    *,
    paired: bool = False,  # each row of fake is made from the same row of real
    closed: bool = False,  # samples on the surface of a ball lie inside
) -> DensityCoverage:
    """Density and coverage. Raises ValueError for bad sets, and fewer than k + 1 rows."""
    check_counts("density_coverage", k=k)
    check_sets("density_coverage", real, fake, k + 1)
    near = Neighbourhoods(real, fake, (k,), recall=False, paired=paired, closed=closed)
    return near.density_coverage(k)


def realism(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    k: int = 3,
) -> Tensor:  # (m,) float64
    """Realism of each fake sample: the largest ratio of a real ball's radius to its distance.

    Above 1 inside a ball; infinite for a copy of a real sample. Balls wider than the median are
    left out (Kynkaanniemi et al. 2019, section 5). Raises ValueError as precision_recall does.
    """
    check_counts("realism", k=k)
    check_sets("realism", real, fake, k + 1)
    return Neighbourhoods(real, fake, (k,), recall=False, realism=True).realism(k)


class Neighbourhoods:
    """All that is asked of the distances within and between two sets, for several k at once.

    Distances are computed once: half of those within each set, and those between them.
    """

    @plain_arithmetic
    def __init__(
        self,
        real: Tensor,  # (n, d)
        fake: Tensor,  # (m, d)
        ks: Sequence[int] = (3, 5),
        *,
        recall: bool = True,  # which needs the distances within the fake set
        realism: bool = False,  # which takes another pass through each block
        paired: bool = False,  # each row of fake is made from the same row of real
        closed: bool = False,  # samples on the surface of a ball lie inside
    ):
        """Raises ValueError for sets that do not fit or are not finite; max(ks) + 1 rows needed."""
        if not ks:
            raise ValueError("Neighbourhoods: ks must name at least one number of neighbours")
        for k in ks:
            check_counts("Neighbourhoods", ks=k)
        check_sets("Neighbourhoods", real, fake, max(ks) + 1)
        if paired:
            check_paired("Neighbourhoods", real, fake)
        self._ks = tuple(ks)
        scale = unit_scale(real, fake)
        self._real = _Side(real, fake, ks, scale, paired, closed)
        self._fake = _Side(fake, real, ks, scale, paired, closed) if recall else None
        self._realism = {}
        if realism:
            self._realism = {k: Realism(real, fake, self._real.radii(k), scale) for k in ks}
        for block in distance_blocks(real, fake, scale):
            self._real.add(block)
            for scores in self._realism.values():
                scores.add(block)
            if self._fake is not None:
                self._fake.add(block.mT)

    def precision_recall(self, k: int) -> PrecisionRecall:
        """Improved precision and recall, for one of the ks."""
        self._check("precision_recall", k)
        if self._fake is None:
            raise ValueError("precision_recall: these Neighbourhoods were made without recall")
        return PrecisionRecall(self._real.fraction_held(k), self._fake.fraction_held(k))

    def density_coverage(self, k: int) -> DensityCoverage:
        """Density and coverage, for one of the ks."""
        self._check("density_coverage", k)
        return DensityCoverage(self._real.density(k), self._real.coverage(k))

    @plain_arithmetic
    def realism(self, k: int) -> Tensor:
        """Realism of the fake samples, (m,) float64, for one of the ks."""
        self._check("realism", k)
        if not self._realism:
            raise ValueError("realism: these Neighbourhoods were made without realism")
        return self._realism[k].scores()

    def _check(self, function: str, k: int) -> None:
        if k not in self._ks:
            known = ", ".join(map(str, self._ks))
            raise ValueError(f"{function}: k must be one of {known}; got {k}")


class _Side:
    """The balls around one set for each k, and the points of the other set in them."""

    def __init__(
        self,
        centres: Tensor,
        points: Tensor,
        ks: Sequence[int],
        scale: float,
        paired: bool,
        closed: bool,
    ):
        self._paired = paired
        self._near = nearest_neighbours(centres, ks, 3 * max(ks) + 3, scale)
        self._balls = {k: Balls(centres, points, self.radii(k), scale, closed) for k in ks}
        self._halves = Halves(self._near, len(points), min(ks), closed)
        self._found: dict[int, list[float]] = {}  # errors for each k

    def radii(self, k: int) -> Tensor:
        """Squared, (n,)."""
        return self._near.squared[:, k - 1]

    def add(self, block: Block) -> None:
        for balls in self._balls.values():
            balls.add(block)
        self._halves.add(block)

    def fraction_held(self, k: int) -> Estimate:
        """The fraction of the points that lie in a ball."""
        held = self._balls[k].held > 0
        return Estimate(float(held.double().mean()), self._errors(k)[0])

    def density(self, k: int) -> Estimate:
        """The mean number of balls that hold a point, divided by k."""
        return Estimate(float(self._balls[k].held.mean()) / k, self._errors(k)[1])

    def coverage(self, k: int) -> Estimate:
        """The fraction of the balls that hold a point."""
        inside = self._balls[k].inside > 0
        return Estimate(float(inside.double().mean()), self._errors(k)[2])

    def _errors(self, k: int) -> list[float]:
        """Errors of the fraction held, the density and the coverage, from random halves."""
        if k not in self._found:
            self._found[k] = self._measure_errors(k)
        return self._found[k]

    def _measure_errors(self, k: int) -> list[float]:
        n, m = len(self._near.index), len(self._balls[k].held)
        if min(n, m) < 4 * (k + 1):
            return [math.nan] * 3
        make = torch.Generator().manual_seed(0)
        centre, point, nearer, weight = self._halves.pairs()
        squares = torch.zeros(3, dtype=torch.float64, device=weight.device)
        for _ in range(_SPLITS):
            centres = _halve(n, make).to(weight.device)
            points = centres if self._paired else _halve(m, make).to(weight.device)
            reach = self._halves.reach(centres, k)
            within = centres.index_select(0, centre) == points.index_select(0, point)
            within &= nearer <= reach.index_select(0, centre)
            counted = weight * within
            held, inside = (
                which.bincount(counted, size) for which, size in ((point, m), (centre, n))
            )
            results = ((held > 0, points), (held / k, points), (inside > 0, centres))
            squares += torch.stack([_difference(*result) for result in results]).square()
        return (squares / _SPLITS / 4).sqrt().tolist()


def _halve(n: int, make: torch.Generator) -> Tensor:
    """(n,) bool: a random half."""
    return torch.randperm(n, generator=make) < n // 2


def _difference(values: Tensor, half: Tensor) -> Tensor:
    """Difference between the mean of values (n,) over the half (n,) bool and over the rest."""
    values = values.double()
    return values[half].mean() - values[~half].mean()
