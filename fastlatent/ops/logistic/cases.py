"""Test arguments that the family shares."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlatent.ops.logistic.grid import Grid


def bins_and_parameters(
    shape: tuple[int, ...],
    n: int,
    grid: str,
    device: str,
    dtype: torch.dtype,
    calm: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bins, means about the grid and log-scales on both sides of -3; calm: slopes of order 1."""
    make = torch.Generator().manual_seed(len(shape) + sum(shape) + n)
    bins = torch.randint(0, n, shape, generator=make, dtype=torch.int32)
    bins = torch.where(torch.rand(shape, generator=make) < 0.1, torch.zeros_like(bins), bins)
    bins = torch.where(torch.rand(shape, generator=make) < 0.1, n - 1, bins)
    middle = 0.5 if grid == "unit" else 0.0
    mean = middle + torch.randn(shape, generator=make, dtype=torch.float64) * 0.6
    log_scale = torch.randn(shape, generator=make, dtype=torch.float64)
    log_scale = log_scale * 0.3 - 0.5 if calm else log_scale * 1.5 - 2.5
    small = torch.uint8 if n <= 256 else torch.int32
    return bins.to(device, small), mean.to(device, dtype), log_scale.to(device, dtype)


def logistic_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    """Cases for ops with one logistic for each value."""
    for shape, n, grid, floor in [
        ((3, 4), 32, "symmetric", -3.0),
        ((2, 7), 16, "unit", -7.0),
        ((40, 70), 256, "centred", -3.0),
        ((2, 3, 14, 15), 256, "unit", -7.0),
        ((803,), 2, "centred", -3.0),
        ((21, 33), 65536, "unit", None),
        ((0, 3), 256, "unit", -7.0),
    ]:
        yield *bins_and_parameters(shape, n, grid, device, dtype)[1:], n, grid, floor
    _, mean, log_scale = bins_and_parameters((10, 20), 32, "symmetric", device, dtype)
    yield mean[:, 1::2], log_scale.t().contiguous().t()[:, ::2], 32, "symmetric", -7.0


def upstream_gradient(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    make = torch.Generator().manual_seed(sum(shape) + 1)
    wide = torch.promote_types(dtype, torch.float32)
    return torch.randn(shape, generator=make, dtype=torch.float64).to(device, wide)


def images_and_parameters(
    shape: tuple[int, int, int, int],
    k: int,
    coupled: bool,
    n: int,
    grid: str,
    device: str,
    dtype: torch.dtype,
    calm: bool = False,
) -> tuple[Tensor, Tensor]:
    images, c, h, w = shape
    make = torch.Generator().manual_seed(sum(shape) + k)
    bins, *_ = bins_and_parameters(shape, n, grid, device, dtype, calm)
    each = (images, c, k, h, w)
    _, means, log_scales = bins_and_parameters(each, n, grid, "cpu", torch.float64, calm)
    of = Grid.of(n, grid, None)
    centres = (2 * bins.cpu().double() - (n - 1) + of.shift) / of.gamma
    blocks = [(centres[:, :, None] + 0.2 * means).float().double(), log_scales]
    if coupled:
        blocks.append(torch.randn(images, c, k, h, w, generator=make, dtype=torch.float64))
    logits = torch.randn(images, k, h, w, generator=make, dtype=torch.float64)
    params = torch.cat([logits, torch.stack(blocks, 2).flatten(1, 3)], 1)
    return bins, params.to(device, dtype)
