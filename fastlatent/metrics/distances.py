"""Distances between rows of large sets: a block at a time, fast, and exact in what they decide.

Squared distances come from float32 products of centred rows, |x|^2 + |y|^2 - 2 x.y, together with
a bound on their rounding that holds for any order of summation: with u half of float32's spacing at
1, each is off by at most 2 g / (1 - g) (|x|^2 + |y|^2), g = (d + 32) u (N. Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, section 3.1; 32 covers all but the sums over d). What the
bound leaves open, usually a pair or two in a million, is computed again in float64 from the
differences of the features. So copies of a row have distance 0, and near-ties come out right.

All lengths here are those of features times `scale`, a power of two that keeps float32 in range.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.metrics.products import row_products
from fastlatent.metrics.sets import float32_products
from fastlatent.metrics.units import Units, common_units

_BLOCK = 1024  # rows and columns of the distances at a time
TINY = 2.0**-100  # added to each bound: far below 1, and far above what float32 flushes to 0
_PAIRS = 2**20  # features of pairs computed again at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of the same set, without the row itself, nearest first."""

    squared: Tensor  # (n, k) float64 squared distance
    index: Tensor  # (n, k) int64


class Block(NamedTuple):
    """Squared distances between consecutive rows of two sets, within the bound."""

    row: int  # the first in its set
    column: int
    squared: Tensor  # (a, b)
    row_norms: Tensor  # (a,) squared
    column_norms: Tensor  # (b,)
    bound: float  # for each pair, of the sum of its squared norms

    @property
    def mT(self) -> "Block":
        """The same with the sets exchanged."""
        return Block(
            self.column, self.row, self.squared.mT, self.column_norms, self.row_norms, self.bound
        )


def pair_distances(x: Tensor, y: Tensor, i: Tensor, j: Tensor, scale: float) -> Tensor:
    """Squared distances of the pairs x[i], y[j] from their differences: (p,) float64."""
    squared = [x.new_empty(0, dtype=torch.float64)]
    for rows, columns in zip(*(k.split(max(1, _PAIRS // x.shape[1])) for k in (i, j)), strict=True):
        left, right = x[rows].double(), y[columns].double()
        if scale != 1:
            left, right = left.mul_(scale), right.mul_(scale)
        difference = left.sub_(right)
        squared.append(torch.linalg.vecdot(difference, difference))
    return torch.cat(squared)


def distance_blocks(x: Tensor, y: Tensor, scale: float) -> Iterator[Block]:
    """All pairs of rows of (n, d) and (m, d)."""
    dtype = _filter_dtype(x.shape[1])
    units = common_units(x, y, scale=scale)
    left, right = (_Rows(z, units, dtype) for z in (x, y))
    for row in range(0, len(x), _BLOCK):
        a, a_norms = left.block(row)
        for column in range(0, len(y), _BLOCK):
            b, b_norms = right.block(column)
            squared = row_products(a, b.mul_(-2), b_norms).add_(a_norms[:, None])
            yield Block(row, column, squared, a_norms, b_norms, left.bound)


def nearest_neighbours(x: Tensor, ks: Sequence[int], most: int, scale: float) -> Neighbours:
    """The nearest rows of each row of (n, d), up to `most` of them; n and `most` above max(ks).

    The k-th distance is exact for the k asked for: that of float64 differences to one of the rows
    that such distances would put there. The others are within the bound of float32 products, and
    so is the order of the index.
    """
    dtype = _filter_dtype(x.shape[1])
    keep = min(most, len(x) - 1)
    squared, index, certain = _neighbours(x, None, ks, keep, scale, dtype)
    hidden = (~certain).nonzero()[:, 0]
    if len(hidden) and dtype != torch.float64:
        # Far from the centre and close to each other: float64 products tell such rows apart.
        squared[hidden], index[hidden], _ = _neighbours(x, hidden, ks, keep, scale, torch.float64)
    return Neighbours(squared, index)


class _Rows:
    """The rows of a set as products take them: centred, scaled, with their squared norms."""

    def __init__(self, x: Tensor, units: Units, dtype: torch.dtype):
        self._x, self._units, self._dtype = x, units, dtype
        g = (x.shape[1] + 32) * torch.finfo(dtype).eps / 2
        self.bound = 2 * g / (1 - g)

    def block(self, first: int) -> tuple[Tensor, Tensor]:
        """(b, d), (b,)."""
        return self.take(slice(first, first + _BLOCK))

    def take(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        part = self._units.rows(self._x[rows], self._dtype)
        return part, torch.linalg.vecdot(part, part)


def _filter_dtype(features: int) -> torch.dtype:
    """Dtype of the first products, for float64 features too: float32 where its bound is of use."""
    return torch.float64 if features > 2**20 else float32_products()


def _neighbours(
    x: Tensor, rows: Tensor | None, ks: Sequence[int], keep: int, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances, index (both (r, keep)) and whether they are certain (r,).

    They lead from the given rows to all, or from all to all by half of the products.
    """
    n = len(x)
    chosen = torch.arange(n, device=x.device) if rows is None else rows
    all_rows = _Rows(x, common_units(x if rows is None else x[rows], scale=scale), dtype)
    best = _Nearest(len(chosen), keep, x, dtype)
    norms = x.new_empty(n, dtype=dtype)
    own = x.new_empty(len(chosen), dtype=dtype)
    shrink = 1 - all_rows.bound
    for first in range(0, len(chosen), _BLOCK):
        here = slice(first, first + _BLOCK)
        left, own[here] = all_rows.take(here if rows is None else rows[here])
        for column in range(first if rows is None else 0, n, _BLOCK):
            there = slice(column, column + _BLOCK)
            right, norms[there] = all_rows.block(column)
            low = row_products(left, right.mul_(-2), shrink * norms[there])
            low.add_(shrink * own[here, None])
            # No row is its own neighbour.
            if rows is not None:
                every = torch.arange(n, device=x.device)[there]
                low.masked_fill_(chosen[here, None] == every, math.inf)
            elif column == first:
                low.fill_diagonal_(math.inf)
            best.add(here, low, column)
            if rows is None and column > first:
                best.add(there, low.mT, first)
    low, index = best.low.double(), best.index
    high = low + 2 * all_rows.bound * (own.double()[:, None] + norms.double()[index]) + 2 * TINY
    squared, index, certain = _decide(x, chosen, low - TINY, high, index, ks, scale)
    return squared, index, certain | (keep == n - 1)


class _Nearest:
    """The smallest lower bounds of each row, from blocks as they come."""

    def __init__(self, rows: int, keep: int, x: Tensor, dtype: torch.dtype):
        self.low = torch.full((rows, keep), math.inf, dtype=dtype, device=x.device)
        self.index = torch.zeros(rows, keep, dtype=torch.int64, device=x.device)

    def add(self, rows: slice, low: Tensor, first: int) -> None:
        """Take in lower bounds for some rows (r, c), to the columns that begin with `first`."""
        keep = self.low.shape[1]
        values, columns = _smallest(low, min(keep, low.shape[1]))
        values = torch.cat([self.low[rows], values], 1)
        columns = torch.cat([self.index[rows], columns + first], 1)
        self.low[rows], order = values.topk(keep, largest=False, sorted=False)
        self.index[rows] = columns.gather(1, order)


def _smallest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row, unsorted, and their columns.

    They lie in the k groups of columns with the smallest minima, and minima are quickly found.
    """
    groups, rest = divmod(x.shape[1], 8)
    if rest or groups <= 2 * k:
        return x.topk(k, largest=False, sorted=False)
    minima = x.unflatten(1, (8, groups)).amin(1)
    chosen = minima.topk(k, largest=False, sorted=False).indices
    members = groups * torch.arange(8, device=x.device)
    columns = (chosen[:, :, None] + members).flatten(1)
    values, order = x.gather(1, columns).topk(k, largest=False, sorted=False)
    return values, columns.gather(1, order)


def _decide(
    x: Tensor,
    rows: Tensor,  # (r,)
    low: Tensor,  # (r, keep) float64 bounds on squared distances from row to index
    high: Tensor,
    index: Tensor,
    ks: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances and index in order, the k-th distances exact, and where no other row interferes."""
    order = (low + high).argsort(1)
    low, high, index = (part.gather(1, order) for part in (low, high, index))
    squared = ((low + high) / 2).clamp_min_(0)
    last, certain = low.amax(1), torch.ones(len(low), dtype=torch.bool, device=x.device)
    for k in ks:
        least, most = (bound.kthvalue(k).values[:, None] for bound in (low, high))
        ranked = torch.where(high < least, -math.inf, math.inf).to(low)  # surely before k-th, after
        row, place = ((low <= most) & (high >= least)).nonzero(as_tuple=True)
        ranked[row, place] = pair_distances(x, x, rows[row], index[row, place], scale)
        squared[:, k - 1] = ranked.kthvalue(k).values
        certain &= last > most[:, 0]
    return squared, index, certain
