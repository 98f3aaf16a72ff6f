"""The nuclear norm, the sum of the singular values, of the product of two factors.

tr (A B)^(1/2) is the nuclear norm of V^T W for A = V V^T and B = W W^T. Three routes:

* "eigenvalues" of C C^T, the cheapest. Rounding moves an eigenvalue s^2 by about eps |C C^T|, hence
  s by that over 2 s: right unless C is badly conditioned.
* "singular values" of C, right to eps |C| each, at three times the price.
* "polar": matrix products only, for GPUs; see `polar`.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.ops.roots.factors import Factor
from fastlatent.ops.roots.matrices import BLOCKS_FROM, block_edges, lower_gram
from fastlatent.ops.roots.polar import LEAST, polar_trace

Route = Literal["eigenvalues", "singular values", "polar"]
POLAR_FROM = 256  # rows from which matrix products beat eigenvalues on a GPU
TOLERANCE = 2e-10  # of the traces: beyond it the next route is taken
PROBES = 4  # vectors of random signs that guess the condition


class Nuclear(NamedTuple):
    """Nuclear norms (...) of float64 matrices."""

    value: Tensor
    bound: Tensor  # on the error by rounding: proven by the polar route, else an estimate
    smallest: Tensor  # singular value, of as many as the matrix has
    largest: Tensor
    route: Route


def nuclear_norm_of_product(v: Factor, w: Factor, scale: Tensor) -> Nuclear:
    """Nuclear norm of V^T W; errors are relative to `scale` (...), which is tr A + tr B."""
    if v.triangular and w.triangular:
        c = _product_of_triangles(v.w, w.w)
        return nuclear_norm(c, scale, _inverse_norm(v.w, w.w))
    return nuclear_norm(v.w.mT @ w.w, scale)


def nuclear_norm(c: Tensor, scale: Tensor, inverse_norm: Tensor | None = None) -> Nuclear:
    """Nuclear norm of c (..., m, n), by the first route with an error below TOLERANCE of `scale`.

    `inverse_norm` (...) guesses |C^-1|_F, which tells what routes are not worth trying.
    """
    if not c.numel():
        zero = c.new_zeros(c.shape[:-2])
        return Nuclear(zero, zero, zero, zero, "eigenvalues")
    c = c if c.shape[-2] <= c.shape[-1] else c.mT
    if polar_pays(c):
        found = by_polar_factor(c, inverse_norm)
        if _good(found.bound, scale):
            return found
    if inverse_norm is not None:
        # The bound of the eigenvalues is in sum at most this.
        error = _gram_error(c, _frobenius(c).square() / math.sqrt(c.shape[-2]))
        if not _good(error * inverse_norm * math.sqrt(c.shape[-2]), 2 * scale):
            return by_singular_values(c)
    found = by_eigenvalues(c)
    return found if _good(found.bound, scale) else by_singular_values(c)


def polar_pays(c: Tensor) -> bool:
    """Matrix products are what a GPU is best at."""
    return c.device.type != "cpu" and c.shape[-2] >= POLAR_FROM


def _good(error: Tensor, scale: Tensor) -> bool:
    return bool((error <= TOLERANCE * scale).all())


def by_eigenvalues(c: Tensor) -> Nuclear:
    """From those of C C^T for c (..., m, n) with m <= n."""
    values = torch.linalg.eigvalsh(lower_gram(c))
    error = _gram_error(c, values[..., -1])[..., None]
    s = values.clamp_min(0).sqrt()
    # |sqrt(x + e) - sqrt(x)| for |e| <= error
    apart = torch.where(values > 2 * error, error / s, (3 * error).sqrt())
    return Nuclear(s.sum(-1), apart.sum(-1), s[..., 0], s[..., -1], "eigenvalues")


def by_polar_factor(c: Tensor, inverse_norm: Tensor | None = None) -> Nuclear:
    """From the orthogonal factor of c (..., m, n) with m <= n: fastlatent.ops.roots.polar."""
    least = LEAST
    if inverse_norm is not None:
        least = float((1 / (inverse_norm * _frobenius(c)).clamp_min(1)).min())
    value, bound = polar_trace(c, least)
    unknown = torch.full_like(value, math.nan)
    return Nuclear(value, bound, unknown, unknown, "polar")


def by_singular_values(c: Tensor) -> Nuclear:
    """From the singular values of c (..., m, n) themselves."""
    s = torch.linalg.svdvals(c)
    bound = 8 * _eps() * (s[..., 0] + _frobenius(c) / math.sqrt(s.shape[-1])) * s.shape[-1]
    return Nuclear(s.sum(-1), bound, s[..., -1], s[..., 0], "singular values")


def _inverse_norm(v: Tensor, w: Tensor) -> Tensor:
    """A guess of |C^-1|_F for C = V^T W of lower triangles: from products with random signs."""
    make = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (v.shape[-1], PROBES), generator=make) - 1
    probes = signs.to(v).expand(*v.shape[:-1], PROBES)
    turned = torch.linalg.solve_triangular(v.mT, probes, upper=True)
    return _frobenius(torch.linalg.solve_triangular(w, turned, upper=False)) / math.sqrt(PROBES)


def _gram_error(c: Tensor, largest: Tensor) -> Tensor:
    """How far rounding moves eigenvalues of C C^T: of the product, then of their computation.

    LAPACK's guidance is eps times the norm for the latter; entries of the product err by eps times
    the lengths of its rows, as a random matrix of them does in norm.
    """
    m = c.shape[-2]
    return 4 * _eps() * (largest.clamp_min(0) + _frobenius(c).square() / math.sqrt(max(1, m)))


def _product_of_triangles(v: Tensor, w: Tensor) -> Tensor:
    """V^T W of lower triangular (..., d, d), without products by blocks that are zero."""
    d = v.shape[-1]
    if d < BLOCKS_FROM or v.device.type != "cpu":
        return v.mT @ w
    c, edges = torch.empty_like(w), block_edges(d)
    for i, (top, bottom) in enumerate(edges):
        for j, (left, right) in enumerate(edges):
            below = edges[max(i, j)][0]
            c[..., top:bottom, left:right] = (
                v[..., below:, top:bottom].mT @ w[..., below:, left:right]
            )
    return c


def _frobenius(c: Tensor) -> Tensor:
    return torch.linalg.vector_norm(c, dim=(-2, -1))


def _eps() -> float:
    return torch.finfo(torch.float64).eps
