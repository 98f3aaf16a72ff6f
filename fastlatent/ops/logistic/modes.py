"""Modes of discretized logistics."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from fastlatent.ops._register import register, threads
from fastlatent.ops.logistic.arguments import (
    check_grid,
    check_mixture,
    check_values,
    flat,
)
from fastlatent.ops.logistic.cases import images_and_parameters, logistic_cases
from fastlatent.ops.logistic.cell import cell_of, confined, log_prob_of, widen
from fastlatent.ops.logistic.grid import MIXTURE, SINGLE, Grid, is_coupled, on_grid
from fastlatent.ops.logistic.mixture import (
    Planes,
    coupled_mean,
    mixture_log_prob,
)


def _log_prob(bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    """`mean` in half-widths."""
    return log_prob_of(cell_of(bins, mean, log_scale, grid))


def _holding(mean: Tensor, grid: Grid) -> Tensor:
    """The bin that holds the mean, the nearest where none does; 0 for NaN."""
    return ((mean + grid.n) / 2).clamp(0, grid.n - 1).floor().nan_to_num(0).int()


def _candidates(mean: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The two bins one of which is the likeliest under a logistic: the mean's and an open one."""
    inner = _holding(mean, grid).clamp_min(1).clamp_max(grid.n - 2)
    return inner, torch.where(mean > 0, grid.n - 1, 0).int()


def _likeliest(mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    inner, end = _candidates(mean, grid)
    better = _log_prob(end, mean, log_scale, grid) > _log_prob(inner, mean, log_scale, grid)
    return torch.where(better, end, inner)


def _sure(mean: Tensor, log_scale: Tensor, grid: Grid, eps: float) -> Tensor:
    """Where rounding to `eps` moves neither the mean to another bin nor the choice of the bin."""
    inner, end = _candidates(mean, grid)
    scores = _log_prob(end, mean, log_scale, grid), _log_prob(inner, mean, log_scale, grid)
    to_edge = (mean + grid.n) / 2
    far = (to_edge - to_edge.round()).abs() > 8 * eps * (grid.n + mean.abs())
    middle = mean.abs() > 8 * eps * grid.n
    apart = (scores[0] - scores[1]).abs() > 256 * eps * (1 + scores[0].abs())
    return far & ((apart & middle) | (inner == end))


def _mode_reference(
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int = 256,
    grid: str = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    of = Grid.of(n_bins, grid, min_log_scale)
    middle, scale = of.gamma * confined(widen(mean)) - of.shift, widen(log_scale)
    mode = _likeliest(middle, scale, of).masked_fill((middle + scale).isnan(), 0)
    return mode.to(of.bin_dtype).contiguous()


@on_grid
def _mode_decided(mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    eps = torch.finfo(widen(mean[:0]).dtype).eps
    return _sure(grid.gamma * mean.double() - grid.shift, log_scale.double(), grid, eps)


@on_grid
def _mode_cpp(core: Any, mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    out = torch.empty(mean.shape, dtype=grid.bin_dtype)
    core.logistic_mode(flat(mean), flat(log_scale), grid, flat(out), threads())
    return out


_mode = register(
    f"discretized_logistic_mode(Tensor mean, Tensor log_scale, {SINGLE}) -> Tensor",
    _mode_reference,
    cases=logistic_cases,
    gradient="none",
    elementwise=True,
    decided=_mode_decided,
    cpp=_mode_cpp,
    triton="logistic_means_triton",
)


@_mode.public
def discretized_logistic_mode(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) uint8 (int32 beyond 256 bins)
    """The likeliest bin of each value: the one that holds the mean, or an open one; no gradient.

    NaN gives bin 0.

    Raises as `discretized_logistic_mean`.
    """
    of = check_grid("discretized_logistic_mode", n_bins, grid, min_log_scale)
    check_values("discretized_logistic_mode", mean=mean, log_scale=log_scale)
    mean, log_scale = torch.broadcast_tensors(mean, log_scale)
    return _mode(mean, log_scale, *of.scalars)


def _of_components(p: Planes, grid: Grid, eps: float | None) -> tuple[Tensor, Tensor]:
    """Candidates (n, c, J, s), and for a given `eps` where rounding can't flip one of them."""
    middles = grid.gamma * p.means - grid.shift
    if middles.shape[1] == 1:
        bins = _holding(middles, grid)
        ends = torch.zeros_like(bins[:, :, :1]), torch.full_like(bins[:, :, :1], grid.n - 1)
        place = (middles + grid.n) / 2
        near = 8 * (eps or 0) * (grid.n + middles.abs())
        return torch.cat([bins, *ends], 2), ((place - place.round()).abs() > near).all(2)[:, 0]
    tau = None if p.coefficients is None else p.coefficients.tanh()
    found: list[Tensor] = []
    sure = torch.ones_like(p.logits, dtype=torch.bool)
    for c in range(middles.shape[1]):
        middle = coupled_mean(middles[:, c], c, tau, [2 * k - (grid.n - 1) for k in found])
        found.append(_likeliest(middle, p.log_scales[:, c], grid))
        if eps is not None:
            sure = sure & _sure(middle, p.log_scales[:, c], grid, eps)
    return torch.stack(found, 1), sure.all(1)


def _scores(params: Tensor, candidates: Tensor, grid: Grid) -> Tensor:
    """log P (n, J, s) of each candidate under the whole mixture."""
    each = []
    for j in range(candidates.shape[2]):
        bins = candidates[:, :, j].unflatten(2, params.shape[2:])
        each.append(mixture_log_prob(bins, params, grid).flatten(1))
    return torch.stack(each, 1)


def _mixture_mode_reference(
    params: Tensor,
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: str = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    of = Grid.of(n_bins, grid, min_log_scale, is_coupled(coupled, channels))
    candidates, _ = _of_components(Planes.of(params, channels, of), of, None)
    scores = _scores(params, candidates, of)
    best = scores.argmax(1, keepdim=True)[:, None].expand(-1, channels, -1, -1)
    mode = candidates.gather(2, best).squeeze(2)
    mode = mode.masked_fill(scores.isnan().any(1)[:, None], 0)
    return mode.unflatten(2, params.shape[2:]).to(of.bin_dtype).contiguous()


@on_grid
def _mixture_mode_decided(params: Tensor, channels: int, grid: Grid) -> Tensor:
    """Where neither a candidate nor the choice among those that differ hangs on rounding."""
    eps = torch.finfo(widen(params[:0]).dtype).eps
    params = params.double()
    candidates, sure = _of_components(Planes.of(params, channels, grid), grid, eps)
    scores = _scores(params, candidates, grid)
    top, best = scores.max(1, keepdim=True)
    index = best[:, None].expand(-1, channels, -1, -1)
    same = (candidates == candidates.gather(2, index)).all(1)
    margin = (top - scores.masked_fill(same, -torch.inf)).amin(1)
    mask = sure & (margin > 1024 * eps * (1 + top[:, 0].abs()))
    return mask[:, None].expand(-1, channels, -1).unflatten(2, params.shape[2:])


def _mixture_mode_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape, k, coupled, n, grid, floor in [
        ((1, 3, 1, 2), 2, True, 16, "centred", -3.0),
        ((2, 1, 1, 3), 2, False, 2, "centred", -3.0),
        ((2, 3, 7, 9), 5, True, 256, "symmetric", -3.0),
        ((2, 2, 9, 5), 3, False, 65536, "centred", None),
        ((4, 1, 1, 40), 5, False, 256, "unit", -3.0),
        ((0, 3, 4, 4), 2, True, 256, "centred", -3.0),
    ]:
        _, params = images_and_parameters(shape, k, coupled, n, grid, device, dtype)
        yield params, shape[1], coupled, n, grid, floor
    _, params = images_and_parameters((2, 3, 4, 6), 2, True, 256, "centred", device, dtype)
    last = params.to(memory_format=torch.channels_last)
    yield last[..., ::2], 3, True, 256, "centred", -3.0


@on_grid
def _mixture_mode_cpp(core: Any, params: Tensor, channels: int, grid: Grid) -> Tensor:
    n, _, h, w = params.shape
    out = torch.empty((n, channels, h, w), dtype=grid.bin_dtype)
    core.logistic_mixture_mode(params.flatten(2), grid, out.flatten(2), threads())
    return out


_mixture_mode = register(
    f"discretized_logistic_mixture_mode(Tensor params, int channels, {MIXTURE}) -> Tensor",
    _mixture_mode_reference,
    cases=_mixture_mode_cases,
    gradient="none",
    decided=_mixture_mode_decided,
    cpp=_mixture_mode_cpp,
    triton="logistic_means_triton",
)


@_mixture_mode.public
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
    gives bin 0 in all channels of its pixel. Costs about K log-probabilities; no gradient.

    Raises as `discretized_logistic_mixture_mean`.
    """
    op = "discretized_logistic_mixture_mode"
    of = check_grid(op, n_bins, grid, min_log_scale)
    channels, of = check_mixture(op, params, channels, coupled, of)
    return _mixture_mode(params, channels, *of.scalars)
