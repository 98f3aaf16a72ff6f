"""The polynomial kernel of two sets in a form that neither overflows nor rounds differences away.

k(x, y) = (gamma x.y + c)^p. With x = m + u and y = m + v about a common centre m,

    gamma x.y + c = r (b + s a(u) + s a(v) + s w),    a(u) = m.u,  w = u.v,  s = gamma / r

where r is such that nothing in brackets exceeds 1. A function of x alone or of y alone, added to
the kernel, leaves the discrepancy of two sets as it is. Without such functions k is gamma r^(p-1)
times

    k'_p = [S^p - A^p - B^p + b^p] / s,    A = b + s a(u),  B = b + s a(v),  S = A + B - b + s w

which is computed without a difference of large numbers, from k'_1 = w:

    k'_{n+1} = S k'_n + w (A^n + B^n - b^n) + s a(u) a(v) [E_n(A) + E_n(B)]

with E_n(A) = (A^n - b^n) / (A - b) = sum_q A^q b^(n-1-q).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.metrics.products import row_products
from fastlatent.metrics.sets import product_dtype
from fastlatent.metrics.units import common_units

_BLOCK = 1024  # rows at a time


class Rows(NamedTuple):
    """Some rows of a set, and what the kernel needs of each beside their products."""

    u: Tensor  # (b, d)
    linear: Tensor  # (b,) s a
    powers: Tensor  # (p - 1, b) A^n for n from 1
    sums: Tensor  # (p - 1, b, 2) a E_n(A) and a, both times the root of |s|


class Polynomial:
    """k' of rows of two sets; their discrepancy is `factor` times that of k'."""

    def __init__(
        self,
        real: Tensor,  # (n, d)
        fake: Tensor,  # (m, d)
        degree: int,
        gamma: float,
        coef0: float,
    ):
        self.dtype = product_dtype(real, fake)
        self._degree = degree
        self._units = common_units(real, fake)
        centre, scale = self._units
        # Sizes are gamma x.y + c of the features times the square of the scale. Where that would
        # overflow, x.y is nothing beside c.
        square = min(scale, 2.0**500) ** 2
        size = abs(coef0) * square + abs(gamma) * max(map(self._longest, (real, fake)))
        self._s = gamma / size if size else 0.0
        self._b = (coef0 * square + gamma * float(centre @ centre)) / size if size else 0.0
        self.factor = gamma / scale / scale * _power(size / scale / scale, degree - 1)

    def rows(self, x: Tensor) -> Rows:
        """Rows of features (b, d), prepared for the kernel."""
        u = self._units.rows(x, torch.float64)
        a = u @ self._units.centre
        value = self._b + self._s * a
        powers, sums = [value], [torch.ones_like(a)]
        for n in range(1, self._degree - 1):
            sums.append(value * sums[-1] + self._b**n)
            powers.append(value * powers[-1])
        root = a * abs(self._s) ** 0.5
        pairs = [torch.stack([root * e, root], 1) for e in sums]
        parts = (u, self._s * a, torch.stack(powers), torch.stack(pairs))
        return Rows(*(part.to(self.dtype) for part in parts))

    def __call__(self, x: Rows, y: Rows) -> Tensor:
        """(a,) and (b,) rows -> (a, b)."""
        w = row_products(x.u, y.u)
        if self._degree == 1:
            return w
        whole = (w * self._s).add_(x.powers[0][:, None]).add_(y.linear)  # S
        k = w.clone()
        for n in range(1, self._degree):
            of_x, of_y = x.powers[n - 1], y.powers[n - 1] - self._b**n
            k.mul_(whole).addcmul_(w, of_x[:, None] + of_y)
            left, right = x.sums[n - 1], y.sums[n - 1].flip(1)
            k.addmm_(left, right.mT, alpha=1 if self._s > 0 else -1)
        return k

    def _longest(self, x: Tensor) -> float:
        """The largest squared norm of the rows (n, d)."""
        norms = [
            (self._units.rows(part, torch.float64) + self._units.centre).square().sum(1).max()
            for part in x.split(_BLOCK)
        ]
        return float(torch.stack(norms).max())


def _power(x: float, n: int) -> float:
    try:
        return x**n
    except OverflowError:
        return float("inf")
