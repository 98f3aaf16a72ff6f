"""The nuclear norm by matrix products alone, with a bound that holds whatever the iteration did.

For C = U H with U orthogonal and H positive semi-definite, |C|_* = tr H = tr(U^T C). U is the
limit of X <- X (a + b G + c G^2), G = X^T X: odd polynomials that drive the singular values of X
to 1. The first ones are the best of degree 5 for singular values in [l, 1] (N. Amsel, D. Persson,
C. Musco, R. Gower, "The Polar Express", arXiv 2505.16932, theorem 3.1), with slopes of 4 at 0; what
stays small after them has little share in the trace.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LEAST = 1e-11  # of the Frobenius norm: no singular value below is worth its steps
SAFETY = 1.01  # room for rounding above the largest value, where the polynomials are steep
POLISH = 3  # steps of Newton-Schulz at the end, each of which squares what is left


class Quintic(NamedTuple):
    """x -> a x + b x^3 + c x^5."""

    a: float
    b: float
    c: float

    def __call__(self, x: float) -> float:
        return x * (self.a + x * x * (self.b + x * x * self.c))


def polar_trace(c: Tensor, smallest: float = LEAST) -> tuple[Tensor, Tensor]:
    """The nuclear norm of c (..., m, n) with m <= n, and a bound on its error: both (...).

    `smallest` guesses the smallest singular value that counts, as a part of the Frobenius norm; a
    wrong guess costs steps or shows in the bound.
    """
    length = _length(c)
    unit = c / torch.where(length > 0, length, 1)[..., None, None]
    x = unit
    for a, b, k in schedule(_decade(smallest)):
        gram = x @ x.mT
        x = a * x + (b * gram + k * (gram @ gram)) @ x
    trace, bound = certified_trace(x, unit)
    return length * trace, length * bound


def certified_trace(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """tr(X C^T) and how far from it the nuclear norm of C can be: both (...), of (..., m, n).

    For any X, whatever rounding did to it, duality and C = C X^T X + (C - C X^T X) give, with the
    spectral norm |X| and S, K the symmetric and skew parts of M = X C^T,

        tr(M) / |X| <= |C|_* <= |X| (|S|_* + sqrt(m) |K|_F) + sqrt(m) |C - M^T X|_F.

    |X|^2 is at most 1 + e where (1 + e) I - X X^T has a Cholesky factor, |S|_* at most
    tr(S) + 2 e m where S + e I has. Only the rounding in evaluating this is not part of the bound
    but added by its order, eps |C|_F. Where a factor is missing the bound is infinite.
    """
    m, eps = c.shape[-2], torch.finfo(c.dtype).eps
    slack, one = m * eps, torch.eye(m, dtype=c.dtype, device=c.device)
    product = x @ c.mT
    even, odd = (product + product.mT) / 2, (product - product.mT) / 2
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1)
    checked = ((1 + slack) * one - x @ x.mT, even + slack * one)
    failed = sum(torch.linalg.cholesky_ex(part).info for part in checked)
    norm = math.sqrt(1 + slack)
    rest = norm * _length(odd) + _length(c - product.mT @ x)
    most = norm * (trace + 2 * slack * m) + math.sqrt(m) * rest
    apart = torch.maximum(most - trace, trace - trace / norm)
    bound = apart + 8 * eps * math.sqrt(m) * _length(c)
    return trace, torch.where(failed == 0, bound, torch.inf)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1))


def _decade(smallest: float) -> float:
    """The power of 10 below, so that there are few schedules."""
    return 10.0 ** math.floor(math.log10(min(max(smallest, LEAST), 1e-2)))


@cache
def schedule(low: float) -> tuple[Quintic, ...]:
    """The polynomials, for singular values in [low, 1]."""
    steps, high = [], 1.0
    while high - low > 0.05:
        best = minimax(low / high)
        end = SAFETY * high
        scaled = Quintic(best.a / end, best.b / end**3, best.c / end**5)
        low, high = scaled(low), best(1.0)
        steps.append(scaled)
    return (*steps, *[Quintic(1.875, -1.25, 0.375)] * POLISH)


def minimax(low: float) -> Quintic:
    """The odd polynomial of degree 5 that is nearest to 1 on [low, 1]: Remez' algorithm."""
    points = np.array([low, *(low + (1 - low) * np.array([0.3, 0.75])), 1.0])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    for _ in range(100):
        matrix = np.stack([points, points**3, points**5, signs], 1)
        a, b, c, _ = np.linalg.solve(matrix, np.ones(4))
        # Extrema inside: a + 3 b x^2 + 5 c x^4 = 0.
        inside = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a]).real.clip(low**2, 1)))
        moved = np.array([low, *inside, 1.0])
        done = np.abs(moved - points).max() < 1e-14
        points = moved
        if done:
            break
    return Quintic(float(a), float(b), float(c))
