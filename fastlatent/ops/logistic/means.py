"""Means of discretized logistics.

In half-widths of a bin from the middle of the grid, with t = |m| and L = n - 1,

    E[clip(Y, -L, L)] = sign(m) (min(t, L) - s log(1 + (near - far) / (1 + far))),
    near = e^-(|L - t| / s),  far = e^-((L + t) / s),

which follows from E[max(Y, L) - L] = s log(1 + e^((m - L) / s)): no two terms that could exceed L
are subtracted.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.ops._register import laid_out, register, threads
from fastlatent.ops.logistic.arguments import (
    check_grid,
    check_mixture,
    check_values,
    flat,
)
from fastlatent.ops.logistic.cases import images_and_parameters, logistic_cases, upstream_gradient
from fastlatent.ops.logistic.cell import clamped, confined, widen
from fastlatent.ops.logistic.grid import MIXTURE, SINGLE, Grid, is_coupled, on_grid
from fastlatent.ops.logistic.mixture import Planes, coupled_mean


class _Clipped(NamedTuple):
    """E[clip(Y, -L, L)] in half-widths and what its derivatives are made of."""

    value: Tensor
    by_mean: Tensor
    by_log_scale: Tensor


def _clipped(mean: Tensor, log_scale: Tensor, grid: Grid) -> _Clipped:
    """`mean` in half-widths."""
    last = float(grid.n - 1)
    floored = clamped(log_scale, grid)
    inverse = ((-floored).exp() / grid.gamma).clamp_min(1e-32)  # beyond, the expectation is 0
    scale = 1 / inverse
    sign = torch.where(mean < 0, -1.0, 1.0).to(mean.dtype)
    t = sign * mean
    beyond = t > last
    held = torch.where(beyond, last, t)
    gap, width = torch.where(beyond, t - last, last - t) * inverse, 2 * held * inverse
    near, far = (-gap).exp(), (-gap - width).exp()
    excess = near * -torch.expm1(-width)
    loss = torch.log1p(excess / (1 + far))
    by_mean = torch.where(beyond, near, 1.0) / ((1 + near) * (1 + far))
    by_mean = by_mean * -torch.expm1(-2 * last * inverse)
    slope = width * (far / (1 + far)) - loss - gap * (excess / ((1 + far) * (1 + near)))
    by_log_scale = torch.where(log_scale < grid.floor, 0.0, sign * scale * slope)
    return _Clipped(sign * (held - scale * loss), by_mean, by_log_scale)


def _mean_reference(
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int = 256,
    grid: str = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    of = Grid.of(n_bins, grid, min_log_scale)
    value = _clipped(of.gamma * confined(widen(mean)) - of.shift, widen(log_scale), of).value
    return ((value + of.shift) / of.gamma).contiguous()


@on_grid
def _mean_backward_reference(
    grad: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    y = _clipped(grid.gamma * confined(widen(mean)) - grid.shift, widen(log_scale), grid)
    by_mean, by_log_scale = grad * y.by_mean, grad * y.by_log_scale / grid.gamma
    return by_mean.to(mean.dtype).contiguous(), by_log_scale.to(mean.dtype).contiguous()


def _mean_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for mean, *rest in logistic_cases(device, dtype):
        yield upstream_gradient(mean.shape, device, dtype), mean, *rest


@on_grid
def _mean_cpp(core: Any, mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    out = torch.empty(mean.shape, dtype=widen(mean[:0]).dtype)
    core.logistic_mean(flat(mean), flat(log_scale), grid, flat(out), threads())
    return out


@on_grid
def _mean_backward_cpp(
    core: Any, grad: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    by_mean, by_log_scale = (torch.empty(mean.shape, dtype=mean.dtype) for _ in range(2))
    inputs = map(flat, (grad, mean, log_scale))
    core.logistic_mean_backward(*inputs, grid, flat(by_mean), flat(by_log_scale), threads())
    return by_mean, by_log_scale


_mean_backward = register(
    f"discretized_logistic_mean_backward(Tensor grad, Tensor mean, Tensor log_scale, {SINGLE}) "
    "-> (Tensor, Tensor)",
    _mean_backward_reference,
    cases=_mean_backward_cases,
    elementwise=True,
    cpp=_mean_backward_cpp,
    triton="logistic_means_triton",
)

_mean = register(
    f"discretized_logistic_mean(Tensor mean, Tensor log_scale, {SINGLE}) -> Tensor",
    _mean_reference,
    cases=logistic_cases,
    elementwise=True,
    cpp=_mean_cpp,
    triton="logistic_means_triton",
    backward=lambda args, grads: _mean_backward(grads[0], *args),
)


@_mean.public
def discretized_logistic_mean(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) on the grid's scale, float32 or the parameters' precision if that is higher
    """E[clip(Y, first centre, last centre)] of the logistic Y, with its closed gradient.

    The mean of "continuous" samples, within half a bin of that of "quantized" ones. NaN gives NaN.

    Raises TypeError for parameters that are not floating tensors of one dtype. Raises ValueError
    for shapes that don't broadcast, devices that differ, an unknown grid, n_bins outside 2 ...
    65536 and min_log_scale below -60.
    """
    of = check_grid("discretized_logistic_mean", n_bins, grid, min_log_scale)
    check_values("discretized_logistic_mean", mean=mean, log_scale=log_scale)
    mean, log_scale = torch.broadcast_tensors(mean, log_scale)
    return _mean(mean, log_scale, *of.scalars)


def _components(p: Planes, grid: Grid) -> list[_Clipped]:
    """Components of each channel (n, K, s); a coupled channel sees the means of those before."""
    middles = grid.gamma * p.means - grid.shift
    tau = None if p.coefficients is None else p.coefficients.tanh()
    found: list[_Clipped] = []
    for c in range(middles.shape[1]):
        middle = coupled_mean(middles[:, c], c, tau, [y.value for y in found])
        found.append(_clipped(middle, p.log_scales[:, c], grid))
    return found


def _mixture_mean_reference(
    params: Tensor,
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: str = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    of = Grid.of(n_bins, grid, min_log_scale, is_coupled(coupled, channels))
    p = Planes.of(params, channels, of)
    values = torch.stack([y.value for y in _components(p, of)], 1)
    weighted = (values * p.logits.softmax(1)[:, None]).sum(2)
    return ((weighted + of.shift) / of.gamma).unflatten(2, params.shape[2:]).contiguous()


@on_grid
def _mixture_mean_backward_reference(grad: Tensor, params: Tensor, grid: Grid) -> Tensor:
    """grad (n, c, h, w)."""
    channels = grad.shape[1]
    p = Planes.of(params, channels, grid)
    y = _components(p, grid)
    share = p.logits.softmax(1)
    upstream = grad.flatten(2)[:, :, None] / grid.gamma
    by_value = list((upstream * share[:, None]).unbind(1))
    by_centre = [torch.empty(0)] * channels
    tau = None if p.coefficients is None else p.coefficients.tanh()
    for c in reversed(range(channels)):
        if tau is not None and c == 1:
            by_value[1] = by_value[1] + by_centre[2] * tau[:, 2]
        if tau is not None and c == 0:
            by_value[0] = by_value[0] + by_centre[2] * tau[:, 1] + by_centre[1] * tau[:, 0]
        by_centre[c] = by_value[c] * y[c].by_mean
    by_log_scale = [b * found.by_log_scale for b, found in zip(by_value, y, strict=True)]
    blocks = [grid.gamma * torch.stack(by_centre, 1), torch.stack(by_log_scale, 1)]
    if tau is not None:
        red, green = y[0].value, y[1].value
        by_tau = [by_centre[1] * red, by_centre[2] * red, by_centre[2] * green]
        blocks.append(torch.stack(by_tau, 1) * (1 - tau.square()))
    q = (upstream * torch.stack([found.value for found in y], 1)).sum(1)
    by_logit = share * (q - (share * q).sum(1, keepdim=True))
    whole = torch.cat([by_logit, torch.stack(blocks, 2).flatten(1, 3)], 1)
    return laid_out(whole.view(params.shape), params)


def _mixture_mean_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape, k, coupled, n, grid, floor in [
        ((1, 3, 1, 1), 2, True, 16, "centred", -3.0),
        ((2, 1, 1, 3), 2, False, 2, "centred", -3.0),
        ((2, 3, 7, 9), 10, True, 256, "centred", -3.0),
        ((2, 2, 9, 5), 3, False, 256, "symmetric", -3.0),
        ((4, 1, 1, 40), 2, False, 65536, "unit", None),
        ((0, 3, 4, 4), 2, True, 256, "centred", -3.0),
    ]:
        _, params = images_and_parameters(shape, k, coupled, n, grid, device, dtype)
        yield params, shape[1], coupled, n, grid, floor
    _, params = images_and_parameters((2, 3, 4, 6), 2, True, 256, "centred", device, dtype)
    last = params.to(memory_format=torch.channels_last)
    yield last[..., ::2], 3, True, 256, "centred", -3.0


def _mixture_mean_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for params, channels, *rest in _mixture_mean_cases(device, dtype):
        n, _, h, w = params.shape
        yield upstream_gradient((n, channels, h, w), device, dtype), params, *rest


@on_grid
def _mixture_mean_cpp(core: Any, params: Tensor, channels: int, grid: Grid) -> Tensor:
    n, _, h, w = params.shape
    out = torch.empty((n, channels, h, w), dtype=widen(params[:0]).dtype)
    core.logistic_mixture_mean(params.flatten(2), grid, out.flatten(2), threads())
    return out


@on_grid
def _mixture_mean_backward_cpp(core: Any, grad: Tensor, params: Tensor, grid: Grid) -> Tensor:
    out = torch.empty_like(params)
    planes = out.flatten(2)
    inputs = grad.flatten(2), params.flatten(2)
    core.logistic_mixture_mean_backward(*inputs, grid, planes, threads())
    return out if planes.data_ptr() == out.data_ptr() else out.copy_(planes.view(out.shape))


_mixture_mean_backward = register(
    f"discretized_logistic_mixture_mean_backward(Tensor grad, Tensor params, {MIXTURE}) -> Tensor",
    _mixture_mean_backward_reference,
    cases=_mixture_mean_backward_cases,
    cpp=_mixture_mean_backward_cpp,
    triton="logistic_means_triton",
)


def _mixture_mean_gradient(args: tuple, grads: tuple) -> tuple:
    params, _, *rest = args
    return (_mixture_mean_backward(grads[0], params, *rest),)


_mixture_mean = register(
    f"discretized_logistic_mixture_mean(Tensor params, int channels, {MIXTURE}) -> Tensor",
    _mixture_mean_reference,
    cases=_mixture_mean_cases,
    cpp=_mixture_mean_cpp,
    triton="logistic_means_triton",
    backward=_mixture_mean_gradient,
)


@_mixture_mean.public
def discretized_logistic_mixture_mean(
    params: Tensor,  # (n, p, h, w)
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (n, c, h, w) on the grid's scale, float32 or params' precision if that is higher
    """Mean image: components' clipped means, weighted; coupled channels see the means before.

    Exact for "continuous" samples without coupling and for the first channel; otherwise a plug-in.
    Differentiable by its closed gradient. NaN gives NaN in its pixel only.

    Raises TypeError for params that are not floating, ValueError for a number of planes that does
    not fit, coupled channels that are not three or on grid "unit", an unknown grid, n_bins outside
    2 ... 65536 and min_log_scale below -60.
    """
    op = "discretized_logistic_mixture_mean"
    of = check_grid(op, n_bins, grid, min_log_scale)
    channels, of = check_mixture(op, params, channels, coupled, of)
    return _mixture_mean(params, channels, *of.scalars)
