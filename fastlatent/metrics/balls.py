"""Which points of one set lie in balls around the points of another, counted block by block."""

import math

import torch
from torch import Tensor

from fastlatent.metrics.distances import TINY, Block, Neighbours, pair_distances

_ROUNDING = 2.0**-22  # of a squared radius, in float32: two roundings and as much again
_ENOUGH = 20  # pairs in inner balls: that none of them is in a random half has probability 2^-20
_SAMPLE = 4096  # pairs of a block that stand for all that are more than enough


class Balls:
    """Balls around n centres, open or closed, and how m points lie in them.

    Counts are exact for distances and radii in float64: pairs on which the blocks' bound does not
    decide are computed again.
    """

    def __init__(
        self,
        centres: Tensor,  # (n, d)
        points: Tensor,  # (m, d)
        squared: Tensor,  # (n,) float64: radii
        scale: float,  # of lengths to those of the features
        closed: bool,  # whether points at the distance of the radius lie inside
    ):
        self._centres, self._points, self._scale = centres, points, scale
        self._squared, self._closed = squared, closed
        self.inside = squared.new_zeros(len(centres))  # points in each ball
        self.held = squared.new_zeros(len(points))  # balls around each point

    def add(self, block: Block) -> None:
        """The next distances from centres (rows) to points (columns)."""
        squared, dtype = block.squared, block.squared.dtype
        rows = slice(block.row, block.row + squared.shape[0])
        columns = slice(block.column, block.column + squared.shape[1])
        radii = self._squared[rows]
        slack = block.bound * (block.row_norms.double() + block.column_norms.double().max())
        slack = slack + _ROUNDING * radii + TINY
        low, high = ((radii + s * slack).to(dtype)[:, None] for s in (-1, 1))

        # Comparisons that write numbers: masks and their sums are ten times slower.
        surely = torch.lt(squared, low, out=torch.empty_like(squared))
        inside = surely.sum(1)
        self.inside[rows] += inside
        self.held[columns] += surely.sum(0)
        perhaps = torch.lt(squared, high, out=surely).sum(1)
        some = (perhaps != inside).nonzero()[:, 0]
        if len(some):
            part = squared[some]
            i, j = ((part >= low[some]) & (part < high[some])).nonzero(as_tuple=True)
            self._add_exactly(block, some[i], j)

    def _add_exactly(self, block: Block, i: Tensor, j: Tensor) -> None:
        """Pairs of the block that the bound of the whole block does not decide."""
        balls, points = block.row + i, block.column + j
        squared, radii = block.squared[i, j].double(), self._squared[balls]
        norms = block.row_norms[i].double() + block.column_norms[j].double()
        slack = block.bound * norms + _ROUNDING * radii + TINY
        unsure = ((squared - radii).abs() <= slack).nonzero()[:, 0]
        squared[unsure] = pair_distances(
            self._centres, self._points, balls[unsure], points[unsure], self._scale
        )
        within = squared <= radii if self._closed else squared < radii
        self.inside += balls[within].bincount(minlength=len(self.inside))
        self.held += points[within].bincount(minlength=len(self.held))


class Halves:
    """What balls would hold if both sets were halves of themselves.

    A ball of a half reaches to the k-th of those of its neighbours that belong to the half. So for
    each pair of a centre and a point the number of neighbours of the centre that are nearer is
    kept, as far as they are known. Points in very many balls, and balls with very many points, keep
    enough pairs to be always held, and the rest are a sample with weights.
    """

    def __init__(self, neighbours: Neighbours, points: int, k: int, closed: bool):
        """For balls that reach to the k-th neighbour or a later one."""
        self._closed = closed
        self._index = neighbours.index  # (n, l)
        self._squared = neighbours.squared.float()
        self._inner = self._squared[:, k - 1]
        n, device = len(self._index), self._index.device
        self._inside = torch.zeros(n, dtype=torch.int64, device=device)
        self._held = torch.zeros(points, dtype=torch.int64, device=device)
        self._pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, block: Block) -> None:
        """The next distances from centres (rows) to points (columns)."""
        squared = block.squared.float()
        rows = slice(block.row, block.row + squared.shape[0])
        columns = slice(block.column, block.column + squared.shape[1])
        reached = squared < self._squared[rows, -1:]
        i, j = _entries(reached)
        if len(i) <= 2 * _ENOUGH * sum(squared.shape):
            self._keep(block, i, j, 1)
            return
        inner = squared < self._inner[rows, None]
        few = inner.cumsum(0) + self._held[columns] <= _ENOUGH
        few |= inner.cumsum(1) + self._inside[rows, None] <= _ENOUGH
        self._held[columns] += inner.sum(0)
        self._inside[rows] += inner.sum(1)
        self._keep(block, *_entries(reached & few), 1)
        i, j = _entries(reached & ~few)
        step = 1 + len(i) // _SAMPLE
        self._keep(block, i[::step], j[::step], step)

    def _keep(self, block: Block, i: Tensor, j: Tensor, weight: int) -> None:
        # Equal distances are equal up to the bound, and open balls end before them.
        slack = block.bound * (block.row_norms[i] + block.column_norms[j]) + TINY
        distance = block.squared[i, j] + (-slack if self._closed else slack)
        nearer = (self._squared[block.row + i] <= distance[:, None]).sum(1)
        weights = torch.full_like(nearer, weight, dtype=torch.float32)
        self._pairs.append((block.row + i, block.column + j, nearer, weights))

    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centre, point, number of nearer neighbours of the centre, weight: each (p,)."""
        centre, point, nearer, weight = (torch.cat(part) for part in zip(*self._pairs, strict=True))
        return centre, point, nearer, weight

    def reach(self, half: Tensor, k: int) -> Tensor:
        """How many neighbours are nearer than the k-th of the same half: (n,) of halves (n,)."""
        same = half.index_select(0, self._index.flatten()).view_as(self._index) == half[:, None]
        return (same.cumsum(1) < k).sum(1)


class Realism:
    """For each of m points the ball in which it lies deepest: the largest radius / distance.

    T. Kynkaanniemi et al. 2019, section 5, which leaves out the balls larger than the median.
    """

    def __init__(self, centres: Tensor, points: Tensor, squared: Tensor, scale: float):
        self._centres, self._points, self._scale = centres, points, scale
        self._squared = torch.where(squared <= squared.median(), squared, -1)  # (n,)
        self._ratio = squared.new_full((len(points),), -math.inf)
        self._ball = torch.zeros(len(points), dtype=torch.int64, device=squared.device)

    def add(self, block: Block) -> None:
        """The next distances from centres (rows) to points (columns)."""
        radii = self._squared[block.row : block.row + len(block.squared)]
        columns = slice(block.column, block.column + block.squared.shape[1])
        ratio, ball = (radii.to(block.squared)[:, None] / block.squared.clamp_min(TINY)).max(0)
        nearer = ratio > self._ratio[columns]
        self._ratio[columns] = torch.where(nearer, ratio.double(), self._ratio[columns])
        self._ball[columns] = torch.where(nearer, ball + block.row, self._ball[columns])

    def scores(self) -> Tensor:
        """(m,) float64; infinite for a copy of a centre."""
        every = torch.arange(len(self._points), device=self._ball.device)
        squared = pair_distances(self._centres, self._points, self._ball, every, self._scale)
        scores = (self._squared[self._ball] / squared).sqrt()
        return torch.where(squared == 0, math.inf, scores)


def _entries(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of what is true; read along memory, as it is eight times slower across."""
    if mask.stride(0) < mask.stride(1):
        j, i = mask.mT.nonzero(as_tuple=True)
        return i, j
    i, j = mask.nonzero(as_tuple=True)
    return i, j
