"""Grids, and the probability of a bin under one logistic."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

GRIDS = ("centred", "symmetric", "unit")
UNCLAMPED = -60.0  # log-scale below which float32 could overflow


class Grid(NamedTuple):
    """n bins; bin k is centred at (2k - n + 1 + shift) / gamma."""

    n: int
    gamma: int
    shift: int
    floor: float  # of the log-scales

    @staticmethod
    def of(grid: str, n_bins: int, min_log_scale: float | None) -> "Grid":
        gamma = {"centred": n_bins - 1, "symmetric": n_bins, "unit": 2 * n_bins}[grid]
        floor = UNCLAMPED if min_log_scale is None else min_log_scale
        return Grid(n_bins, gamma, n_bins if grid == "unit" else 0, floor)


class Cell(NamedTuple):
    """A bin under a logistic; lengths in units of the scale."""

    inner: Tensor  # neither the first nor the last bin
    sign: Tensor  # of the derivative of log P with respect to the mean
    alpha: Tensor
    beta: Tensor
    delta: Tensor
    z: Tensor  # |centre - mean|
    inverse_scale: Tensor


def cell_of(bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid) -> Cell:
    """`mean` counts half-widths of a bin from the middle of the grid."""
    x = (2 * bins - (grid.n - 1)).to(mean.dtype)
    inverse_scale = (-clamped(log_scale, grid)).exp()
    h = inverse_scale / grid.gamma
    lower, upper = (x - 1) - mean, (x + 1) - mean
    first, last = bins == 0, bins == grid.n - 1
    right = ((x >= mean) & ~first) | last
    return Cell(
        inner=~(first | last),
        sign=torch.where(right, 1.0, -1.0).to(mean.dtype),
        alpha=torch.where(right, lower, -upper) * h,
        beta=torch.where(right, upper, -lower) * h,
        delta=2 * h,
        z=(x - mean).abs() * h,
        inverse_scale=inverse_scale,
    )


def clamped(log_scale: Tensor, grid: Grid) -> Tensor:
    """At least grid.floor, with gradient 1 at equality."""
    return torch.where(log_scale < grid.floor, torch.full_like(log_scale, grid.floor), log_scale)


def log_prob_of(c: Cell) -> Tensor:
    inner = (-torch.expm1(-c.delta)).log() + logsigmoid(c.beta)
    return logsigmoid(-c.alpha) + torch.where(c.inner, inner, torch.zeros_like(inner))


def slopes_of(c: Cell, log_scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """d log P / d mean and d log P / d log_scale."""
    sigma = c.alpha.sigmoid()
    spread = -torch.expm1(-2 * c.z) * c.beta.sigmoid()
    mean = c.sign * sigma * torch.where(c.inner, spread, torch.ones_like(spread)) * c.inverse_scale
    width = c.delta * (-c.delta).exp() / -torch.expm1(-c.delta)
    loss = c.beta * (-c.beta).sigmoid() + width
    slope = c.alpha * sigma - torch.where(c.inner, loss, torch.zeros_like(loss))
    return mean, torch.where(log_scale < grid.floor, torch.zeros_like(slope), slope)


def widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bin_dtype(n_bins: int) -> torch.dtype:
    return torch.uint8 if n_bins <= 256 else torch.int32
