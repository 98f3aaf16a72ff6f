"""Means and modes of discretized logistics, in plain PyTorch around their log-probabilities."""

from typing import Literal

import torch
from torch import Tensor

from fastlatent.ops.logistic.arguments import check_grid, check_params, check_values, is_coupled
from fastlatent.ops.logistic.cell import Grid, bin_dtype, clamped, widen
from fastlatent.ops.logistic.mixture import (
    Planes,
    coupled_mean,
    discretized_logistic_mixture_log_prob,
)
from fastlatent.ops.logistic.single import discretized_logistic_log_prob


def discretized_logistic_mean(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) on the grid's scale
    """E[clip(Y, first centre, last centre)] of the logistic Y, differentiable.

    The mean of "continuous" samples, within half a bin of that of "quantized" ones. NaN gives NaN.
    Plain PyTorch, computed in float32 or float64.

    Raises TypeError for parameters that are not floating tensors of one dtype, ValueError for
    shapes that don't broadcast, devices that differ, an unknown grid, n_bins outside 2 ... 65536
    and min_log_scale below -60.
    """
    check_grid("discretized_logistic_mean", n_bins, grid, min_log_scale)
    check_values("discretized_logistic_mean", mean=mean, log_scale=log_scale)
    of = Grid.of(grid, n_bins, min_log_scale)
    middle = _clipped_mean(of.gamma * widen(mean) - of.shift, widen(log_scale), of)
    return (middle + of.shift) / of.gamma


def _clipped_mean(mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    """In half-widths: last - s log((1 + e^((last - m) / s)) / (1 + e^((-last - m) / s)))."""
    last = grid.n - 1
    floored = clamped(log_scale, grid)
    scale = grid.gamma * floored.exp()
    # Not divided by the scale: the derivative of that overflows.
    inverse = (-floored).exp() / grid.gamma
    upper, lower, span = (last - mean) * inverse, (-last - mean) * inverse, 2 * last * inverse
    # One logarithm where the span is short: the difference of two would cancel.
    short = torch.log1p(lower.sigmoid() * torch.expm1(span.clamp_max(1)))
    softplus = torch.nn.functional.softplus
    long = softplus(upper, threshold=50) - softplus(lower, threshold=50)
    beyond = span - (softplus(-lower, threshold=50) - softplus(-upper, threshold=50))
    long = torch.where(lower > 0, beyond, long)
    return last - scale * torch.where(span < 1, short, long)


def discretized_logistic_mixture_mean(
    params: Tensor,  # (n, p, h, w)
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (n, c, h, w) on the grid's scale
    """Mean image: components' clipped means, weighted; coupled channels see the means before.

    Exact for "continuous" samples without coupling and for the first channel; otherwise a plug-in.
    Differentiable, in plain PyTorch. NaN gives NaN in its pixel only.

    Raises TypeError for params that are not floating, ValueError for a number of planes that does
    not fit, coupled channels that are not three or on grid "unit", an unknown grid, n_bins outside
    2 ... 65536 and min_log_scale below -60.
    """
    op = "discretized_logistic_mixture_mean"
    check_grid(op, n_bins, grid, min_log_scale)
    check_params(op, params, channels, coupled, grid)
    of = Grid.of(grid, n_bins, min_log_scale)
    p = Planes.of(params, channels, is_coupled(coupled, channels))
    middles = of.gamma * p.means - of.shift
    tau = None if p.coefficients is None else p.coefficients.tanh()
    found: list[Tensor] = []
    for c in range(channels):
        middle = coupled_mean(middles[:, c], c, tau, found)
        found.append(_clipped_mean(middle, p.log_scales[:, c], of))
    weighted = (torch.stack(found, 1) * p.logits.softmax(1)[:, None]).sum(2)
    return ((weighted + of.shift) / of.gamma).unflatten(2, params.shape[2:])


def _likeliest(mean: Tensor, log_scale: Tensor, grid: Grid, options: tuple) -> Tensor:
    """The likeliest bin of one logistic, `mean` in half-widths: the mean's, the first or last."""
    inner = ((mean + grid.n) / 2).floor().clamp(min(1, grid.n - 1), max(grid.n - 2, 0))
    ends = torch.zeros_like(inner), torch.full_like(inner, grid.n - 1)
    candidates = torch.stack([inner.nan_to_num(0), *ends]).int()
    on_grid = (mean + grid.shift) / grid.gamma
    each = [x.expand_as(candidates) for x in (on_grid, log_scale)]
    score = discretized_logistic_log_prob(candidates, *each, *options)
    best = candidates.gather(0, score.argmax(0, keepdim=True)).squeeze(0)
    return best.masked_fill(score[0].isnan(), 0)


@torch.no_grad()
def discretized_logistic_mode(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) uint8 (int32 beyond 256 bins)
    """The likeliest bin of each value: the one that holds the mean, or an open one.

    NaN gives bin 0. Plain PyTorch around `discretized_logistic_log_prob`; no gradient.

    Raises as `discretized_logistic_mean`.
    """
    check_grid("discretized_logistic_mode", n_bins, grid, min_log_scale)
    check_values("discretized_logistic_mode", mean=mean, log_scale=log_scale)
    of = Grid.of(grid, n_bins, min_log_scale)
    middle = of.gamma * widen(mean) - of.shift
    options = (n_bins, grid, min_log_scale)
    return _likeliest(middle, widen(log_scale), of, options).to(bin_dtype(n_bins))


@torch.no_grad()
def discretized_logistic_mixture_mode(
    params: Tensor,  # (n, p, h, w)
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (n, c, h, w) uint8 (int32 beyond 256 bins)
    """The likeliest among the components' modes, under the whole mixture; ties to the first.

    A component's mode goes channel by channel, later channels seeing the bins before; for one
    channel the first and the last bin are tried too. Not always the mixture's own mode: with one
    channel, 10 components and log-scales of -5 to -2 it is in 19 of 20 pixels. A NaN parameter
    gives bin 0 in all channels of its pixel. Costs about K log-probabilities. Plain PyTorch around
    `discretized_logistic_mixture_log_prob`; no gradient.

    Raises as `discretized_logistic_mixture_mean`.
    """
    op = "discretized_logistic_mixture_mode"
    check_grid(op, n_bins, grid, min_log_scale)
    check_params(op, params, channels, coupled, grid)
    of = Grid.of(grid, n_bins, min_log_scale)
    pairs = is_coupled(coupled, channels)
    p = Planes.of(params, channels, pairs)
    options = (n_bins, grid, min_log_scale)
    middles = of.gamma * p.means - of.shift
    tau = None if p.coefficients is None else p.coefficients.tanh()
    found: list[Tensor] = []  # (n, K, s) each
    for c in range(channels):
        values = [2 * bins - (n_bins - 1) for bins in found]
        middle = coupled_mean(middles[:, c], c, tau, values)
        found.append(_likeliest(middle, p.log_scales[:, c], of, options))
    candidates = torch.stack(found, 1)  # (n, c, K, s)
    if channels == 1:
        holding = ((middles + n_bins) / 2).floor().clamp(0, n_bins - 1).nan_to_num(0).int()
        ends = torch.zeros_like(holding[:, :, :1]), torch.full_like(holding[:, :, :1], n_bins - 1)
        candidates = torch.cat([holding, *ends], 2)

    best = torch.full_like(p.logits[:, 0], -torch.inf)
    mode = torch.zeros_like(candidates[:, :, 0])
    for i in range(candidates.shape[2]):
        bins = candidates[:, :, i].unflatten(2, params.shape[2:])
        score = discretized_logistic_mixture_log_prob(
            bins, params, pairs, *options, reduction="none"
        ).flatten(1)
        mode = torch.where((score > best)[:, None], candidates[:, :, i], mode)
        best = torch.maximum(score, best)
    return mode.unflatten(2, params.shape[2:]).to(bin_dtype(n_bins))
