"""From moments of signs to a factor A (m, r) of Gaussian correlations R = A A^T, rows of length 1.

Sign moments mapped entry by entry to Gaussian ones, H (m, m), need not be positive semidefinite.
Each of the three repairs takes H, symmetric with unit diagonal, in float64, and returns A. It also
takes how many coordinates each row stands for, (m,), by default 1. Entry i, j weighs n_i n_j: R is
as near to H as if all these coordinates had rows of their own, and they stay equal.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_CONVERGED = 1e-9  # largest entry's change in a round of the alternating projections


def gaussian_correlation(disagree: Tensor, count: int) -> Tensor:
    """H_ij = cos(pi q_ij), q the fraction of codes in which i and j differ: (m, m) -> float64.

    Equal to sin(pi / 2 E[b_i b_j]) (Sheppard 1899).
    """
    return (disagree.double() * (torch.pi / count)).cos()


def clip(h: Tensor, counts: Tensor | None = None) -> Tensor:
    """Correlations of the nearest positive semidefinite matrix in Frobenius norm (Higham 1988)."""
    return _unit_rows(_positive_part(h, counts))


def nearest_correlation(h: Tensor, counts: Tensor | None = None, rounds: int = 200) -> Tensor:
    """Nearest correlation matrix: alternating projections with Dykstra's correction (Higham 2002).

    One eigendecomposition a round, up to `rounds`.
    """
    y = h
    correction = torch.zeros_like(h)
    for _ in range(rounds):
        shifted = y - correction
        half = _positive_part(shifted, counts)
        projected = half @ half.mT
        correction = projected - shifted
        previous, y = y, projected.fill_diagonal_(1.0)
        if (y - previous).abs().max() < _CONVERGED:
            break
    return clip(y, counts)


def exact_means(h: Tensor, counts: Tensor | None = None) -> Tensor:
    """Keep the last column of H, which carries the means; clip the Schur complement of the rest.

    With c that column, S = H' - c c^T is clipped and rescaled to its own diagonal 1 - c^2;
    the rest of R is S + c c^T.
    """
    column = h[:-1, -1]
    schur = h[:-1, :-1] - column.outer(column)
    length = ((1 - column) * (1 + column)).clamp_min(0).sqrt()
    rows = (
        _unit_rows(_positive_part(schur, None if counts is None else counts[:-1])) * length[:, None]
    )
    top = torch.cat([rows, column[:, None]], 1)
    return torch.cat([top, torch.eye(top.shape[1], dtype=h.dtype, device=h.device)[-1:]])


REPAIRS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "clip": clip,
    "nearest_correlation": nearest_correlation,
    "exact_means": exact_means,
}


def _positive_part(h: Tensor, counts: Tensor | None) -> Tensor:
    """B (m, r) with S B B^T S = V max(w, 0) V^T, for eigenvalues w and eigenvectors V of S h S.

    S = diag(sqrt(counts)), so that B B^T is the semidefinite matrix nearest to h in that norm.
    """
    s = (h.new_ones(len(h)) if counts is None else counts.to(h)).sqrt()[:, None]
    w, v = torch.linalg.eigh(s * h * s.mT)
    positive = w > 0
    return v[:, positive] * w[positive].sqrt() / s


def _unit_rows(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)
