"""Kernel distance of two sets of features, known as KID on those of the Inception network.

M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018. For m samples x of one law and y of
another, the unbiased estimate of the squared maximum mean discrepancy of a kernel k (A. Gretton et
al., "A Kernel Two-Sample Test", JMLR 2012, equation 3) is

    sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.metrics.products import row_products
from fastlatent.metrics.sets import (
    SEED,
    check_counts,
    check_paired,
    check_sets,
    plain_arithmetic,
    product_dtype,
)

_BLOCK = 1024  # rows and columns of the kernel matrix at a time, if there are many


class KernelDistance(NamedTuple):
    """The mean over subsets of the unbiased squared discrepancy, and how sure it is."""

    value: float  # below 0 by chance where the laws are alike
    error: float  # standard error of value: the choice of both sets, and of the subsets from them
    deviation: float  # population standard deviation over the subsets; 0 of one
    subsets: int
    subset_size: int  # rows of either side in each; of the smaller side where all rows are used


@plain_arithmetic
def kernel_distance(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    subsets: int | None = 100,  # None: the estimate from all rows of both, which needs none
    subset_size: int = 1000,
    *,
    degree: int = 3,
    gamma: float | None = None,  # default: 1 / d
    coef0: float = 1.0,
    seed: int = SEED,
    draws: tuple[Tensor, Tensor] | None = None,  # (subsets, size) rows of real and of fake
    paired: bool = False,  # each row of fake is made from the same row of real
) -> KernelDistance:
    """The distance under k(x, y) = (gamma x.y + coef0)^degree, not multiplied by anything.

    Each subset is drawn without replacement, from each side by itself, by `seed` or as given in
    `draws`; the draw is the same on every device. Sets of which one has fewer than `subset_size`
    rows are compared by one subset as large as the smaller: the result says so. Products are in
    float32, in float64 for float64 features.

    The error is that of a U-statistic of two samples with its first and second order (Gretton et
    al. 2012, section 6.1; both are needed, since the first vanishes for equal laws), plus what
    the finite number of subsets adds. Of paired sets, subsets and the first order are of pairs.

    Raises ValueError for sets that do not fit each other or hold other than finite numbers, for
    fewer than 2 rows, for draws that are no subsets, and for paired sets or draws that differ.
    """
    check_sets("kernel_distance", real, fake)
    if paired:
        check_paired("kernel_distance", real, fake)
        if draws is not None and not torch.equal(*draws):
            raise ValueError("kernel_distance: draws of paired sets must be two equal tensors")
    check_counts("kernel_distance", degree=degree, subset_size=subset_size)
    if subset_size < 2:
        raise ValueError("kernel_distance: subset_size must be at least 2; got 1")
    if subsets is not None:
        check_counts("kernel_distance", subsets=subsets)
    sets = (real, fake)
    sizes = (len(real), len(fake))
    kernel = _Polynomial(sets, 1 / real.shape[1] if gamma is None else gamma, coef0, degree)
    if draws is None and subsets is not None:
        draws = _draw(sizes, subsets, subset_size, seed, paired)
    if draws is None:
        _, whole = _compare(real, fake, kernel, *_no_subsets(real, fake, kernel), paired)
        return KernelDistance(whole.value, math.sqrt(whole.variance(sizes)), 0.0, 1, min(sizes))
    _check_draws(draws, sizes)
    values, moments = _measure(sets, draws, kernel, paired)
    subsets, size = draws[0].shape
    value, deviation = float(values.mean()), float(values.std(correction=0))
    if subsets == 1:
        return KernelDistance(value, math.sqrt(moments.variance((size, size))), 0.0, 1, size)
    variance = moments.variance(sizes) + deviation**2 / (subsets - 1)
    return KernelDistance(value, math.sqrt(variance), deviation, subsets, size)


def _draw(
    sizes: tuple[int, int], subsets: int, subset_size: int, seed: int, paired: bool
) -> tuple[Tensor, Tensor]:
    smaller = min(sizes)
    if smaller < subset_size:
        subsets, subset_size = 1, smaller
    make = torch.Generator().manual_seed(seed)
    drawn = [
        [torch.randperm(n, generator=make)[:subset_size] for n in sizes] for _ in range(subsets)
    ]
    real, fake = map(torch.stack, zip(*drawn, strict=True))
    return real, real if paired else fake


def _check_draws(draws: tuple[Tensor, Tensor], sizes: tuple[int, int]) -> None:
    real, fake = draws
    if real.dim() != 2 or real.shape != fake.shape or real.shape[0] < 1 or real.shape[1] < 2:
        raise ValueError(
            "kernel_distance: draws must be two tensors of one shape (subsets, size) with size >= "
            f"2; got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    for name, rows, n in zip(("real", "fake"), draws, sizes, strict=True):
        ordered = rows.sort(1).values
        if ordered[:, 0].min() < 0 or ordered[:, -1].max() >= n or (ordered.diff() == 0).any():
            raise ValueError(
                f"kernel_distance: draws must name different rows of {name}, 0 to {n - 1}, in "
                "each subset"
            )


class _Polynomial:
    """k(x, y) less its value between the means of the sets.

    A constant added to a kernel leaves the discrepancy as it is, and small numbers round less.
    """

    def __init__(self, sets: tuple[Tensor, Tensor], gamma: float, coef0: float, degree: int):
        self.dtype = product_dtype(*sets)
        self._gamma, self._coef0, self._degree = gamma, coef0, degree
        real, fake = (x.mean(0, dtype=self.dtype).double() for x in sets)
        self._shift = (gamma * float(real @ fake) + coef0) ** degree

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(a, d), (b, d) -> (a, b)."""
        k = row_products(x, y).mul_(self._gamma).add_(self._coef0)
        return k.pow_(self._degree).sub_(self._shift)


class _Products(NamedTuple):
    """Sums of the kernel over pairs of rows of two sets, or of one set without its diagonal."""

    rows: Tensor  # (n,) float64
    columns: Tensor  # (m,) float64
    squares: float  # of its squares over all pairs
    subsets: Tensor  # (s,) float64: over the pairs within each subset


def _products(x: Tensor, y: Tensor, kernel: _Polynomial, a: Tensor, b: Tensor) -> _Products:
    """Of (n, d) and (m, d) with the memberships (s, n) and (s, m) of their subsets."""
    rows, columns, subsets = (x.new_zeros(n, dtype=torch.float64) for n in (len(x), len(y), len(a)))
    squares = 0.0
    for here in _blocks(x):
        left = x[here].to(kernel.dtype)
        for there in _blocks(y):
            k = kernel(left, y[there].to(kernel.dtype))
            rows[here] += k.sum(1)
            columns[there] += k.sum(0)
            subsets += ((a[:, here] @ k) * b[:, there]).sum(1)
            squares += float(k.square_().sum())
    return _Products(rows, columns, squares, subsets)


def _blocks(x: Tensor, first: int = 0) -> Iterator[slice]:
    """Of rows: halves of small sets, so that symmetry saves something there too."""
    size = _BLOCK if len(x) > 2 * _BLOCK else -(-len(x) // 2)
    for start in range(first, len(x), size):
        yield slice(start, start + size)


def _own_products(x: Tensor, kernel: _Polynomial, a: Tensor) -> _Products:
    """Of one set with itself: each pair is computed once, each row with what follows it."""
    rows, subsets = (x.new_zeros(n, dtype=torch.float64) for n in (len(x), len(a)))
    squares = 0.0
    for here in _blocks(x):
        left = x[here].to(kernel.dtype)
        for there in _blocks(x, here.start):
            k = kernel(left, x[there].to(kernel.dtype))
            if there == here:  # half of the square on the diagonal, as all of it counts twice
                k.triu_(1)
            rows[here] += k.sum(1)
            rows[there] += k.sum(0)
            subsets += 2 * ((a[:, here] @ k) * a[:, there]).sum(1)
            squares += 2 * float(k.square_().sum())
    return _Products(rows, rows, squares, subsets)


class _Moments(NamedTuple):
    """What the variance of the estimate depends on: variances of the parts of the kernel.

    With h(x) = E k(x, X) - E k(x, Y) for a real x, and likewise for a fake one, and with the
    kernels centred in both arguments (Hoeffding's decomposition).
    """

    value: float  # of the estimate
    real: float  # var h(x)
    fake: float  # var h(y)
    both: float  # cov (h(x), h(y)) of pairs, 0 unless they are paired
    real_real: float  # var of the centred k(x, x')
    fake_fake: float
    real_fake: float

    def variance(self, sizes: tuple[int, int]) -> float:
        """Of the estimate from n real and m fake samples."""
        n, m = sizes
        first = 4 * self.real / n + 4 * self.fake / m + 8 * self.both / n
        second = 2 * self.real_real / (n * (n - 1)) + 2 * self.fake_fake / (m * (m - 1))
        second += 4 * self.real_fake / (n * m)
        # Equal laws have no first order, but an estimate of it that is as often below 0 as above;
        # taking only what is above would count chance as variance.
        return max(first + second, second / 2)


def _compare(
    x: Tensor,  # (n, d)
    y: Tensor,  # (m, d)
    kernel: _Polynomial,
    a: Tensor,  # (s, n) 1 where the row belongs to the subset
    b: Tensor,  # (s, m)
    paired: bool,
) -> tuple[Tensor, _Moments]:
    """The estimates (s,) from the subsets, and the moments as all rows have them."""
    n, m = len(x), len(y)
    xx, yy = _own_products(x, kernel, a), _own_products(y, kernel, b)
    xy = _products(x, y, kernel, a, b)
    size = a.sum(1, dtype=torch.float64)
    values = (xx.subsets + yy.subsets) / (size * (size - 1)) - 2 * xy.subsets / size.square()

    # As in a two-way analysis of variance: what row and column means leave of the mean square.
    rows, columns = xx.rows / (n - 1), yy.rows / (m - 1)
    rows_across, columns_across = xy.rows / m, xy.columns / n
    own_x, own_y, across = rows.mean(), columns.mean(), rows_across.mean()
    xx_centred = xx.squares / (n * (n - 1)) - 2 * rows.square().mean() + own_x.square()
    yy_centred = yy.squares / (m * (m - 1)) - 2 * columns.square().mean() + own_y.square()
    xy_centred = (
        xy.squares / (n * m)
        - rows_across.square().mean()
        - columns_across.square().mean()
        + across.square()
    )
    xx_var, yy_var, xy_var = (float(v.clamp(min=0)) for v in (xx_centred, yy_centred, xy_centred))
    # Means over finitely many columns vary by their noise too.
    of_real, of_fake = rows - rows_across, columns - columns_across
    real = float(of_real.var()) - xx_var / (n - 1) - xy_var / m
    fake = float(of_fake.var()) - yy_var / (m - 1) - xy_var / n
    both = float(torch.stack([of_real, of_fake]).cov()[0, 1]) if paired else 0.0
    value = float(own_x + own_y - 2 * across)
    return values, _Moments(value, real, fake, both, xx_var, yy_var, xy_var)


def _measure(
    sets: tuple[Tensor, Tensor],
    draws: tuple[Tensor, Tensor],
    kernel: _Polynomial,
    paired: bool,
) -> tuple[Tensor, _Moments]:
    """The estimates (s,) from the subsets, and the moments, by the cheaper of two exact ways.

    Either the kernel of all rows with each other, block by block, of which subsets take what is
    theirs by products with their memberships; or the kernel within each subset by itself.
    """
    (n, m), d = map(len, sets), sets[0].shape[1]
    subsets, size = draws[0].shape
    if (n * n / 2 + m * m / 2 + n * m) * (d + subsets) <= 2 * subsets * size**2 * d:
        return _compare(*sets, kernel, *map(_members, draws, sets, (kernel.dtype,) * 2), paired)
    values, moments = [], []
    for rows in zip(*draws, strict=True):
        x, y = (z[row.to(z.device)] for z, row in zip(sets, rows, strict=True))
        _, found = _compare(x, y, kernel, *_no_subsets(x, y, kernel), paired)
        values.append(found.value)
        moments.append(found)
    values = torch.tensor(values, dtype=torch.float64)
    return values, _Moments(*(sum(v) / subsets for v in zip(*moments, strict=True)))


def _no_subsets(x: Tensor, y: Tensor, kernel: _Polynomial) -> tuple[Tensor, Tensor]:
    return tuple(z.new_empty(0, len(z), dtype=kernel.dtype) for z in (x, y))


def _members(draws: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """(s, size) rows -> (s, n) 0 and 1."""
    draws = draws.to(x.device)
    members = torch.zeros(len(draws), len(x), dtype=dtype, device=x.device)
    return members.scatter_(1, draws, 1)
