"""What the roots ask of their matrices, and products of which half is enough."""

from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
BLOCKS, BLOCKS_FROM = 8, 512  # along each side of a product, and the rows from which it is cut


def symmetric(a: Tensor) -> Tensor:
    """(a + a^T) / 2: what a function of symmetric matrices takes of any matrix (..., d, d)."""
    return (a + a.mT).mul_(0.5)


def whole(*matrices: Tensor) -> tuple[list[Tensor], Tensor]:
    """Symmetric parts in float64, 0 where a matrix is not finite; where any of them is not."""
    unfit = [~_largest_entry(a).isfinite() for a in matrices]
    clean = [
        symmetric(a.double()).masked_fill_(bad[..., None, None], 0)
        for a, bad in zip(matrices, unfit, strict=True)
    ]
    return clean, reduce(torch.logical_or, unfit)


def _largest_entry(a: Tensor) -> Tensor:
    """The largest |entry| of (..., d, d), NaN with a NaN: one pass that makes no matrix."""
    if not a.numel():
        return a.new_zeros(a.shape[:-2])
    return torch.linalg.vector_norm(a.detach(), torch.inf, dim=(-2, -1))


def with_nan(value: Tensor, bad: Tensor) -> Tensor:
    """Values (..., *rest) with NaN where bad (...)."""
    rest = value.dim() - bad.dim()
    return value.masked_fill(bad[(...,) + (None,) * rest], torch.nan)


def shape_of(op: str, **matrices: Tensor) -> None:
    """All are (..., d, d) of one shape."""
    (first, a), *rest = matrices.items()
    if a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"{op}: {first} must have shape (..., d, d); got {tuple(a.shape)}")
    for name, b in rest:
        if b.shape != a.shape:
            raise ValueError(
                f"{op}: {name} must have the shape of {first}, {tuple(a.shape)}; "
                f"got {tuple(b.shape)}"
            )


def check_psd(op: str, name: str, values: Tensor, dtype: torch.dtype) -> None:
    """The eigenvalues (..., d), in ascending order, are those of PSD matrices in that dtype."""
    if not values.numel():
        return
    least, most = values[..., 0], values.abs().amax(-1)
    d = values.shape[-1]
    short = -least - d * torch.finfo(dtype).eps * most
    if (short > 0).any():
        worst = int(short.argmax())
        low, high = float(least.flatten()[worst]), float(most.flatten()[worst])
        raise ValueError(
            f"{op}: {name} must be positive semi-definite; its eigenvalues go down to {low:.3g}, "
            f"{-low / high:.2g} of the largest in size, more than rounding in {dtype} explains; "
            f"fastlatent.ops.project_psd gives the nearest matrix that is"
        )


def lower_gram(c: Tensor) -> Tensor:
    """C C^T of (..., m, n), of which only the lower triangle is sure to be computed."""
    m = c.shape[-2]
    if m < BLOCKS_FROM or c.device.type != "cpu":
        return c @ c.mT
    gram = c.new_zeros(*c.shape[:-2], m, m)
    for top, bottom in block_edges(m):
        gram[..., top:bottom, :bottom] = c[..., top:bottom, :] @ c[..., :bottom, :].mT
    return gram


def block_edges(d: int) -> list[tuple[int, int]]:
    """Where blocks begin and end: finer ones leave out more and multiply more slowly."""
    return list(pairwise(d * k // BLOCKS for k in range(BLOCKS + 1)))
