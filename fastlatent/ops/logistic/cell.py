"""The probability of a bin under one logistic."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastlatent.ops.logistic.grid import Grid

MOST_MEAN = {
    torch.float32: 2.0**80,
    torch.float64: 2.0**900,
}  # from here on 2^13 gamma m could overflow
FARTHEST = 1e4  # exponent at which e^-x is 0, and x e^-x with it
NARROWEST = 1e-17  # width in units of the scale, to which 1 - e^-x is x


class Cell(NamedTuple):
    """A bin under a logistic; lengths in units of the scale."""

    inner: Tensor  # neither the first nor the last bin
    sign: Tensor  # of the derivative of log P with respect to the mean
    alpha: Tensor
    beta: Tensor
    delta: Tensor
    log_delta: Tensor
    z: Tensor  # |centre - mean|
    inverse_scale: Tensor


def cell_of(bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid) -> Cell:
    """`mean` counts half-widths of a bin from the middle of the grid."""
    x = (2 * bins - (grid.n - 1)).to(mean.dtype)
    floored = clamped(log_scale, grid)
    inverse_scale = (-floored).exp()
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
        log_delta=grid.log_width - floored,
        z=(x - mean).abs() * h,
        inverse_scale=inverse_scale,
    )


def cell_on(bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid) -> Cell:
    """`mean` is on the grid's scale; `bins` and parameters have the dtypes that users give."""
    centre = grid.gamma * confined(widen(mean)) - grid.shift
    return cell_of(bins.int(), centre, widen(log_scale), grid)


def clamped(log_scale: Tensor, grid: Grid) -> Tensor:
    """At least grid.floor, with gradient 1 at equality."""
    return torch.where(log_scale < grid.floor, torch.full_like(log_scale, grid.floor), log_scale)


def confined(mean: Tensor) -> Tensor:
    """NaN beyond the domain, infinities among it; `mean` on the grid's scale and widened."""
    return torch.where(mean.abs() <= MOST_MEAN[mean.dtype], mean, torch.nan)


def log_prob_of(c: Cell) -> Tensor:
    narrow = c.delta < NARROWEST  # and may be 0 where its logarithm is not -inf
    width = (-torch.expm1(-c.delta.clamp_min(NARROWEST))).log()
    inner = torch.where(narrow, c.log_delta, width) + logsigmoid(c.beta)
    return logsigmoid(-c.alpha) + torch.where(c.inner, inner, torch.zeros_like(inner))


def slopes_of(c: Cell, log_scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """d log P / d mean and d log P / d log_scale."""
    sigma = c.alpha.sigmoid()
    spread = -torch.expm1(-2 * c.z) * c.beta.sigmoid()
    mean = c.sign * sigma * torch.where(c.inner, spread, torch.ones_like(spread)) * c.inverse_scale
    delta = c.delta.clamp_min(NARROWEST)
    width = delta * (-delta).exp() / -torch.expm1(-delta)
    loss = c.beta.clamp_max(FARTHEST) * (-c.beta).sigmoid() + width
    slope = c.alpha.clamp_min(-FARTHEST) * sigma - torch.where(
        c.inner, loss, torch.zeros_like(loss)
    )
    return mean, torch.where(log_scale < grid.floor, torch.zeros_like(slope), slope)


def widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
