"""Argument checks that the family shares."""

from dataclasses import replace

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import strict
from fastlatent.ops.logistic.grid import GRIDS, UNCLAMPED, Grid, is_coupled

BINS = (torch.uint8, torch.int32)


def check_grid(op: str, n_bins: int, grid: str, min_log_scale: float | None) -> Grid:
    """The grid of an op with one logistic for each value; ValueError for arguments out of range."""
    _check.choice(op, "grid", grid, GRIDS)
    n_bins = _check.whole(op, "n_bins", n_bins, 2, 65536, "a whole number in 2 ... 65536")
    floor = UNCLAMPED if min_log_scale is None else _check.real(min_log_scale)
    if floor is None or not floor >= UNCLAMPED:
        raise ValueError(
            f"{op}: min_log_scale must be at least -60; got {_check.shown(min_log_scale)}"
        )
    return Grid(n_bins, grid, floor, None)


def check_mixture(
    op: str, params: Tensor, channels: int, coupled: bool | None, grid: Grid
) -> tuple[int, Grid]:
    """The number of channels, and the grid with whether they are coupled."""
    _check.tensor(op, "params", params, 4, _check.FLOATING)
    channels = _check.whole(op, "channels", channels, 1, 2**31, "a whole number from 1 up")
    given = None if coupled is None else _check.flag(op, "coupled", coupled)
    coupled = is_coupled(given, channels)
    if coupled and channels != 3:
        raise ValueError(f"{op}: coupled channels must be three; got {channels}")
    if coupled and grid.name == "unit":
        raise ValueError(f"{op}: grid must be 'centred' or 'symmetric' where channels are coupled")
    each = 10 if coupled else 1 + 2 * channels
    if params.shape[1] < each or params.shape[1] % each:
        kind = "coupled" if coupled else "uncoupled"
        raise ValueError(
            f"{op}: params must have a multiple of {each} planes for {channels} {kind} channels; "
            f"got {params.shape[1]}"
        )
    return channels, replace(grid, coupled=coupled)


def check_values(op: str, **values: Tensor) -> None:
    """Floating tensors of one dtype and device whose shapes broadcast."""
    for name, value in values.items():
        _check.tensor(op, name, value, None, _check.FLOATING)
    _check.alike(op, **values)
    check_broadcast(op, **values)


def check_broadcast(op: str, **values: Tensor) -> None:
    shapes = [tuple(value.shape) for value in values.values()]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        names = " and ".join(values)
        raise ValueError(f"{op}: {names} must have shapes that broadcast; got {shapes}") from None


def check_single(op: str, bins: Tensor, mean: Tensor, log_scale: Tensor) -> None:
    """Bins and the parameters of one distribution for each, all of one shape."""
    _check.tensor(op, "bins", bins, None, BINS)
    _check.tensor(op, "mean", mean, None, _check.FLOATING)
    _check.tensor(op, "log_scale", log_scale, None, _check.FLOATING)
    _check.alike(op, mean=mean, log_scale=log_scale)
    for name, other in (("mean", mean), ("log_scale", log_scale)):
        if other.shape != bins.shape:
            raise ValueError(
                f"{op}: {name} must have the shape of bins, {tuple(bins.shape)}; "
                f"got {tuple(other.shape)}"
            )


def check_bins(op: str, bins: Tensor, params: Tensor, grid: Grid) -> None:
    if bins.device != params.device:
        raise ValueError(
            f"{op}: bins must be on the device of the parameters, {params.device}; "
            f"got {bins.device}"
        )
    if bins.is_cuda and strict() and not bool(((bins >= 0) & (bins < grid.n)).all()):
        raise ValueError(f"{op}: bins must be in 0 to {grid.n - 1}")


def flat(x: Tensor) -> Tensor:
    """(...) as one contiguous vector."""
    return x.contiguous().view(-1)
