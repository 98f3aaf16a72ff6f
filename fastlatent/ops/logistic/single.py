"""One discretized logistic for each value."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from fastlatent.ops._register import register, threads
from fastlatent.ops.logistic.arguments import (
    check_bins,
    check_grid,
    check_single,
    flat,
)
from fastlatent.ops.logistic.cases import bins_and_parameters, upstream_gradient
from fastlatent.ops.logistic.cell import cell_on, log_prob_of, slopes_of, widen
from fastlatent.ops.logistic.grid import SINGLE, Grid, on_grid


def _single_reference(
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int = 256,
    grid: str = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    cell = cell_on(bins, mean, log_scale, Grid.of(n_bins, grid, min_log_scale))
    return log_prob_of(cell).contiguous()


@on_grid
def _single_backward_reference(
    grad: Tensor, bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    slopes = slopes_of(cell_on(bins, mean, log_scale, grid), widen(log_scale), grid)
    by_mean, by_log_scale = ((grad * slope).to(mean.dtype).contiguous() for slope in slopes)
    return by_mean, by_log_scale


def _single_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for n, grid in [(32, "symmetric"), (16, "unit")]:
        yield *bins_and_parameters((3, 3), n, grid, device, dtype, calm=True), n, grid, -7.0
    for shape, n, grid, floor in [
        ((64, 150), 256, "centred", -7.0),
        ((2, 3, 14, 15), 256, "unit", -3.0),
        ((803,), 2, "centred", -3.0),
        ((21, 33), 65536, "unit", None),
        ((0, 3), 256, "unit", -7.0),
    ]:
        yield *bins_and_parameters(shape, n, grid, device, dtype), n, grid, floor
    bins, mean, log_scale = bins_and_parameters((30, 40), 32, "symmetric", device, dtype)
    yield bins[:, ::2], mean[:, 1::2], log_scale.t().contiguous().t()[:, ::2], 32, "symmetric", -7.0


def _single_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for bins, *rest in _single_cases(device, dtype):
        yield upstream_gradient(bins.shape, device, dtype), bins, *rest


@on_grid
def _single_cpp(core: Any, bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    out = torch.empty(bins.shape, dtype=widen(mean[:0]).dtype)
    core.logistic_log_prob(flat(bins), flat(mean), flat(log_scale), grid, flat(out), threads())
    return out


@on_grid
def _single_backward_cpp(
    core: Any, grad: Tensor, bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    by_mean, by_log_scale = (
        torch.empty(bins.shape, dtype=mean.dtype),
        torch.empty(bins.shape, dtype=mean.dtype),
    )
    inputs = map(flat, (grad, bins, mean, log_scale))
    core.logistic_backward(*inputs, grid, flat(by_mean), flat(by_log_scale), threads())
    return by_mean, by_log_scale


_single_backward = register(
    "discretized_logistic_backward(Tensor grad, Tensor bins, Tensor mean, Tensor log_scale, "
    f"{SINGLE}) -> (Tensor, Tensor)",
    _single_backward_reference,
    cases=_single_backward_cases,
    elementwise=True,
    cpp=_single_backward_cpp,
    triton="logistic_triton",
)

_single = register(
    f"discretized_logistic_log_prob(Tensor bins, Tensor mean, Tensor log_scale, {SINGLE}) "
    "-> Tensor",
    _single_reference,
    cases=_single_cases,
    elementwise=True,
    cpp=_single_cpp,
    triton="logistic_triton",
    backward=lambda args, grads: (None, *_single_backward(grads[0], *args)),
)


@_single.public
def discretized_logistic_log_prob(
    bins: Tensor,  # (...) uint8 or int32 in 0 ... n_bins - 1
    mean: Tensor,  # (...) on the grid's scale
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) nats, float32 or the parameters' precision if that is higher
    """log P(bin) of one logistic for each value, with its closed gradient; relative accuracy.

    Log-scales below `min_log_scale` count as that and get no gradient (at equality they do);
    None means -60. A NaN parameter gives NaN there only.

    Raises TypeError for bins that are not uint8 or int32 or parameters that are not floating.
    Raises ValueError for shapes or devices that differ, an unknown grid, n_bins outside 2 ...
    65536, min_log_scale below -60 and, on CPU or under FASTLATENT_STRICT=1, a bin outside the grid.
    """
    op = "discretized_logistic_log_prob"
    check_single(op, bins, mean, log_scale)
    of = check_grid(op, n_bins, grid, min_log_scale)
    check_bins(op, bins, mean, of)
    return _single(bins, mean, log_scale, *of.scalars)
