"""A mixture of discretized logistics for each pixel."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import laid_out, register, threads
from fastlatent.ops.logistic.arguments import (
    BINS,
    check_bins,
    check_grid,
    check_mixture,
)
from fastlatent.ops.logistic.cases import images_and_parameters, upstream_gradient
from fastlatent.ops.logistic.cell import (
    Cell,
    cell_of,
    confined,
    log_prob_of,
    slopes_of,
    widen,
)
from fastlatent.ops.logistic.grid import MIXTURE, Grid, is_coupled, on_grid

REDUCTIONS = ("image", "none")


class Planes(NamedTuple):
    """The parameters of a mixture, (n, ..., s) for s pixels."""

    logits: Tensor  # (n, K, s)
    means: Tensor  # (n, c, K, s)
    log_scales: Tensor  # (n, c, K, s)
    coefficients: Tensor | None  # (n, 3, K, s), before their tanh

    @staticmethod
    def of(params: Tensor, channels: int, grid: Grid) -> "Planes":
        wide = widen(params).flatten(2)
        k = components(params.shape[1], channels, grid)
        rest = wide[:, k:].unflatten(1, (channels, 3 if grid.coupled else 2, k))
        means, log_scales, *coefficients = rest.unbind(2)
        tied = coefficients[0] if grid.coupled else None
        return Planes(wide[:, :k], confined(means), log_scales, tied)


def components(planes: int, channels: int, grid: Grid) -> int:
    """K, from the number of parameter planes."""
    return planes // (10 if grid.coupled else 1 + 2 * channels)


def _channel_means(p: Planes, x: Tensor, grid: Grid) -> Tensor:
    """Means given the values x (n, c, s) of the channels before, as cell_of takes them."""
    means = grid.gamma * p.means - grid.shift
    if p.coefficients is None:
        return means
    tau, values = p.coefficients.tanh(), x[:, :, None].unbind(1)
    return torch.stack([coupled_mean(means[:, c], c, tau, values) for c in range(3)], 1)


def coupled_mean(mean: Tensor, c: int, tau: Tensor | None, before: Sequence[Tensor]) -> Tensor:
    """The mean of channel c given the channels before; tau (n, 3, ...), None where not coupled."""
    if tau is None or c == 0:
        return mean
    if c == 1:
        return mean + tau[:, 0] * before[0]
    return mean + tau[:, 1] * before[0] + tau[:, 2] * before[1]


def _mixture_cells(bins: Tensor, p: Planes, grid: Grid) -> Cell:
    bins = bins.int().flatten(2)
    x = (2 * bins - (grid.n - 1)).to(p.means.dtype)
    return cell_of(bins[:, :, None], _channel_means(p, x, grid), p.log_scales, grid)


def _mixture_reference(
    bins: Tensor,
    params: Tensor,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: str = "centred",
    min_log_scale: float | None = -7.0,
    reduction: str = "image",
) -> Tensor:
    of = Grid.of(n_bins, grid, min_log_scale, is_coupled(coupled, bins.shape[1]))
    log_prob = mixture_log_prob(bins, params, of)
    return log_prob.flatten(1).sum(1) if reduction == "image" else log_prob


def mixture_log_prob(bins: Tensor, params: Tensor, grid: Grid) -> Tensor:
    """(n, h, w), in plain PyTorch."""
    p = Planes.of(params, bins.shape[1], grid)
    joint = log_prob_of(_mixture_cells(bins, p, grid)).sum(1)
    log_prob = (p.logits.log_softmax(1) + joint).logsumexp(1)
    return log_prob.view(bins.shape[0], *bins.shape[2:]).contiguous()


@on_grid
def _mixture_backward_reference(grad: Tensor, bins: Tensor, params: Tensor, grid: Grid) -> Tensor:
    """grad (n,) or (n, h, w)."""
    p = Planes.of(params, bins.shape[1], grid)
    cells = _mixture_cells(bins, p, grid)
    share = (p.logits.log_softmax(1) + log_prob_of(cells).sum(1)).softmax(1)
    by_mean, by_log_scale = slopes_of(cells, p.log_scales, grid)
    blocks = [by_mean, by_log_scale]
    if p.coefficients is not None:
        x = (2 * bins.flatten(2).int() - (grid.n - 1)).to(by_mean.dtype) / grid.gamma
        target = torch.stack([by_mean[:, 1], by_mean[:, 2], by_mean[:, 2]], 1)
        source = torch.stack([x[:, 0], x[:, 0], x[:, 1]], 1)[:, :, None]
        blocks.append(target * source * (1 - p.coefficients.tanh().square()))
    rest = torch.stack(blocks, 2) * share[:, None, None]
    whole = torch.cat([share - p.logits.softmax(1), rest.flatten(1, 3)], 1)
    scaled = grad.flatten(1)[:, None] * whole if grad.dim() > 1 else grad[:, None, None] * whole
    return laid_out(scaled.view(params.shape), params)


def _mixture_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape, k, coupled, n, grid, reduction in [
        ((1, 3, 1, 2), 2, True, 16, "centred", "none"),
        ((2, 1, 1, 2), 2, False, 32, "unit", "image"),
    ]:
        bins, params = images_and_parameters(shape, k, coupled, n, grid, device, dtype, calm=True)
        yield bins, params, coupled, n, grid, -3.0, reduction
    for shape, k, coupled, n, grid, floor, reduction in [
        ((2, 3, 8, 9), 10, True, 256, "centred", -3.0, "image"),
        ((3, 3, 5, 7), 4, True, 256, "symmetric", -3.0, "none"),
        ((3, 1, 7, 13), 5, False, 2, "centred", -3.0, "image"),
        ((2, 2, 9, 5), 2, False, 65536, "unit", None, "image"),
        ((1, 18, 3, 6), 2, False, 256, "unit", -3.0, "none"),
        ((16, 1, 1, 40), 2, False, 256, "centred", -3.0, "image"),
        ((0, 3, 4, 4), 2, True, 256, "centred", -3.0, "image"),
    ]:
        bins, params = images_and_parameters(shape, k, coupled, n, grid, device, dtype)
        yield bins, params, coupled, n, grid, floor, reduction
    bins, params = images_and_parameters((2, 3, 8, 9), 3, True, 256, "centred", device, dtype)
    last = torch.channels_last
    bins, params = bins.to(memory_format=last), params.to(memory_format=last)
    yield bins, params, True, 256, "centred", -3.0, "none"
    yield bins[:, :, ::2], params[..., ::2, :], True, 256, "centred", -3.0, "image"


def _mixture_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for bins, params, *rest, reduction in _mixture_cases(device, dtype):
        n, _, h, w = bins.shape
        shape = (n,) if reduction == "image" else (n, h, w)
        yield upstream_gradient(shape, device, dtype), bins, params, *rest


@on_grid
def _mixture_cpp(core: Any, bins: Tensor, params: Tensor, grid: Grid, reduction: str) -> Tensor:
    n, _, h, w = bins.shape
    shape = (n,) if reduction == "image" else (n, h, w)
    out = torch.empty(shape, dtype=widen(params[:0]).dtype)
    planes = bins.flatten(2), params.flatten(2)
    core.logistic_mixture_log_prob(*planes, grid, _pixels(out), threads())
    return out


@on_grid
def _mixture_backward_cpp(
    core: Any, grad: Tensor, bins: Tensor, params: Tensor, grid: Grid
) -> Tensor:
    out = torch.empty_like(params)
    planes = out.flatten(2)
    inputs = _pixels(grad.contiguous()), bins.flatten(2), params.flatten(2)
    core.logistic_mixture_backward(*inputs, grid, planes, threads())
    return out if planes.data_ptr() == out.data_ptr() else out.copy_(planes.view(out.shape))


_mixture_backward = register(
    f"discretized_logistic_mixture_backward(Tensor grad, Tensor bins, Tensor params, {MIXTURE}) "
    "-> Tensor",
    _mixture_backward_reference,
    cases=_mixture_backward_cases,
    cpp=_mixture_backward_cpp,
    triton="logistic_triton",
)


def _mixture_gradient(args: tuple, grads: tuple) -> tuple:
    *arguments, _ = args
    return None, _mixture_backward(grads[0], *arguments)


_mixture = register(
    f"discretized_logistic_mixture_log_prob(Tensor bins, Tensor params, {MIXTURE}, str reduction) "
    "-> Tensor",
    _mixture_reference,
    cases=_mixture_cases,
    cpp=_mixture_cpp,
    triton="logistic_triton",
    backward=_mixture_gradient,
)


@_mixture.public
def discretized_logistic_mixture_log_prob(
    bins: Tensor,  # (n, c, h, w) uint8 or int32 in 0 ... n_bins - 1
    params: Tensor,  # (n, p, h, w)
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
    reduction: Literal["image", "none"] = "image",
) -> Tensor:  # nats: (n,) summed over each image, or (n, h, w)
    """log P(pixel) of a mixture of discretized logistics, with its closed gradient.

    The number of components follows from p = 10 K where channels are coupled, K (1 + 2 c)
    otherwise; this module's first lines give their order. `coupled` None means c = 3. Computed in
    float32, or float64 for float64; gradients take the dtype of the parameters. Contiguous and
    channels_last tensors are read as they are. Log-scales below `min_log_scale` count as that and
    get no gradient (at equality they do); None means -60. A NaN parameter gives NaN in its pixel
    only.

    Raises TypeError for bins that are not uint8 or int32 or params that are not floating,
    ValueError for shapes that do not fit, coupled channels that are not three or on grid "unit",
    n_bins outside 2 ... 65536, min_log_scale below -60 and, on CPU or under FASTLATENT_STRICT=1, a
    bin outside the grid.
    """
    op = "discretized_logistic_mixture_log_prob"
    _check.tensor(op, "bins", bins, 4, BINS)
    of = check_grid(op, n_bins, grid, min_log_scale)
    _check.choice(op, "reduction", reduction, REDUCTIONS)
    _, of = check_mixture(op, params, bins.shape[1], coupled, of)
    if bins.shape[0] != params.shape[0] or bins.shape[2:] != params.shape[2:]:
        raise ValueError(
            f"{op}: bins and params must agree in images and pixels; "
            f"got shapes {tuple(bins.shape)} and {tuple(params.shape)}"
        )
    check_bins(op, bins, params, of)
    return _mixture(bins, params, *of.scalars, reduction)


def _pixels(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.view(x.shape[0], x.shape[1] * x.shape[2])
