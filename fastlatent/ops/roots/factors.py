"""A = W W^T for positive semi-definite A: by Cholesky of full rank, with pivots otherwise.

A singular covariance, as of fewer samples than features, has eigenvalues of rounding size where
its own are 0; their square roots would be 1e-8 of the largest. So the factor of such a matrix gets
as many columns as the rank, which complete pivoting reveals: N. J. Higham, "Analysis of the
Cholesky decomposition of a semi-definite matrix", in "Reliable Numerical Computation", Oxford
University Press 1990.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.ops.roots.matrices import check_psd
from fastlatent.ops.roots.square_root import Eigen

EPS = torch.finfo(torch.float64).eps
PANEL = 64  # columns between two updates of the whole remainder


class Factor(NamedTuple):
    """W (..., d, r) of A = W W^T in float64."""

    w: Tensor
    triangular: bool  # lower and of full rank, from a Cholesky factorisation without pivots


def factor(op: str, name: str, a: Tensor, dtype: torch.dtype) -> Factor:
    """Factor of a finite float64 matrix (..., d, d) that was converted from `dtype`.

    Features that never vary, as dead units, are left out of what is factored.

    Raises ValueError for one that is further from positive semi-definite than rounding explains.
    """
    w, failed = torch.linalg.cholesky_ex(a)
    if not failed.any() and (smallest_eigenvalue(w) > least_left(a.shape[-1])).all():
        return Factor(w, True)
    single = a.dim() == 2 and a.device.type == "cpu"
    live = a.diagonal() > 0 if single else None
    if live is not None and not live.all() and not a[~live].any():
        inner = factor(op, name, a[live][:, live], dtype).w
        return Factor(a.new_zeros(len(a), inner.shape[1]).index_put((live,), inner), False)
    # Pivots are for one matrix, on a device that need not wait for each, and where rounding in
    # float64 is all that makes it indefinite.
    if single and dtype == torch.float64:
        pivoted = pivoted_cholesky(a)
        if pivoted is not None:
            return Factor(pivoted, False)
    eigen = Eigen(a)
    check_psd(op, name, eigen.values, dtype)
    kept = eigen.values > a.shape[-1] * EPS * eigen.values[..., -1:]
    columns = kept.reshape(-1, kept.shape[-1]).any(0)
    return Factor((eigen.vectors * (eigen.roots * kept)[..., None, :])[..., columns], False)


def least_left(d: int) -> float:
    """Relative size below which a pivot counts as rounding error."""
    return (d + 16) * EPS


def smallest_eigenvalue(
    w: Tensor,  # (..., d, d) lower triangular
) -> Tensor:  # (...)
    """Smallest eigenvalue of W W^T scaled to unit diagonal, by inverse iteration.

    A Cholesky factorisation of a singular matrix can succeed, by chance, and then it is tiny.
    """
    scaled = w / w.norm(dim=-1, keepdim=True)
    d = w.shape[-1]
    x = torch.arange(1, d + 1, dtype=w.dtype, device=w.device).cos()
    x = x.expand(w.shape[:-1])[..., None]
    for _ in range(3):
        x = x / x.norm(dim=-2, keepdim=True)
        x = torch.linalg.solve_triangular(scaled, x, upper=False)
        squared = x.square().sum((-2, -1))  # of the inverse, between x and x
        x = torch.linalg.solve_triangular(scaled.mT, x, upper=True)
    return 1 / squared


def pivoted_cholesky(
    a: Tensor,  # (d, d) float64
) -> Tensor | None:  # (d, rank)
    """A factor of the matrix scaled to unit diagonal, scaled back; None if that leaves a remainder.

    Columns are in the order of the pivots, rows in their own order. So W is triangular up to a
    permutation of its rows.
    """
    d = len(a)
    scale = a.diagonal().clamp_min(0).sqrt()
    if (a[scale == 0].abs() > d * EPS * a.abs().amax()).any():
        return None
    inverse = torch.where(scale > 0, 1 / scale, 0)
    remainder = a * inverse[:, None] * inverse
    diagonal = remainder.diagonal().clone()
    unused = torch.ones_like(diagonal)
    rows = torch.zeros_like(a)  # of W^T
    least = least_left(d)
    rank = start = 0
    while start < d:
        stop = min(start + PANEL, d)
        for k in range(start, stop):
            pivot = int(diagonal.argmax())
            root = max(float(diagonal[pivot]), 0) ** 0.5
            if root <= least**0.5:
                break
            row = torch.addmv(
                remainder[pivot], rows[start:k].mT, rows[start:k, pivot], alpha=-1, out=rows[k]
            )
            row.mul_(unused).div_(root)
            row[pivot] = root
            diagonal.addcmul_(row, row, value=-1)
            diagonal[pivot] = -torch.inf
            unused[pivot] = 0
            rank += 1
        panel = rows[start:rank]
        remainder.addmm_(panel.mT, panel, alpha=-1)
        if rank < stop:
            break
        start = stop
    left = remainder * unused[:, None] * unused
    if left.numel() and float(left.abs().amax()) > 16 * least:
        return None
    return (rows[:rank] * scale).mT
