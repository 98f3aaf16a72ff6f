"""Kernel distance of two sets of features, known as KID on those of the Inception network.

M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018. For m samples x of one law and y of
another, the unbiased estimate of the squared maximum mean discrepancy of a kernel k (A. Gretton et
al., "A Kernel Two-Sample Test", JMLR 2012, equation 3) is

    sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2

Where x_i and y_i belong together, k(x_i, y_i) is no sample of independent x and y, and would pull
the estimate down. The last term is then the mean over i != j too, which makes the whole a
U-statistic of the pairs z_i = (x_i, y_i) (there, equation 4), with the kernel

    h(z_i, z_j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastlatent.metrics.polynomial import Polynomial, Rows
from fastlatent.metrics.sets import (
    SEED,
    check_counts,
    check_paired,
    check_sets,
    plain_arithmetic,
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
    """The unbiased squared MMD under k(x, y) = (gamma x.y + coef0)^degree, without a factor.

    Each subset is drawn without replacement, from each side by itself, by `seed` or as given in
    `draws`; the draw is the same on every device. Sets of which one has fewer than `subset_size`
    rows are compared by one subset as large as the smaller: the result says so. Products are in
    float32, in float64 for float64 features; features of any scale and offset keep their digits.

    Paired sets are a sample of pairs. Subsets are of pairs, and the estimate leaves out the kernel
    between the two sides of one pair: with it, copies of the real samples would come out below 0.

    The error is that of a U-statistic of two samples or of pairs, plus what the finite number of
    subsets adds. It has the first and the second order (Gretton et al. 2012, section 6.1), since
    the first vanishes for equal distributions.

    Raises ValueError for sets that do not fit each other or are not finite, and for fewer than 2
    rows. Raises ValueError for a kernel that is not finite, draws that are no subsets, and paired
    sets or draws that differ.
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
    gamma = 1 / real.shape[1] if gamma is None else gamma
    for name, number in (("gamma", gamma), ("coef0", coef0)):
        if not math.isfinite(number):
            raise ValueError(f"kernel_distance: {name} must be finite; got {number}")
    sets = (real, fake)
    sizes = (len(real), len(fake))
    kernel = Polynomial(*sets, degree, gamma, coef0)
    if draws is None and subsets is not None:
        draws = _draw(sizes, subsets, subset_size, seed, paired)
    if draws is None:
        _, whole = _compare(real, fake, kernel, *_no_subsets(real, fake, kernel), paired)
        return _scaled(kernel, whole.value, whole.variance(sizes), 0.0, 1, min(sizes))
    _check_draws(draws, sizes)
    values, moments = _measure(sets, draws, kernel, paired)
    subsets, size = draws[0].shape
    value, deviation = float(values.mean()), float(values.std(correction=0))
    if subsets == 1:
        return _scaled(kernel, value, moments.variance((size, size)), 0.0, 1, size)
    variance = moments.variance(sizes) + deviation**2 / (subsets - 1)
    return _scaled(kernel, value, variance, deviation, subsets, size)


def _scaled(
    kernel: Polynomial, value: float, variance: float, deviation: float, subsets: int, size: int
) -> KernelDistance:
    """From what the kernel without its factor gave; 0 stays 0 where the factor is infinite."""
    error = math.sqrt(variance)
    value = value * kernel.factor if value else 0.0
    error, deviation = (x * abs(kernel.factor) if x else 0.0 for x in (error, deviation))
    return KernelDistance(value, error, deviation, subsets, size)


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


_Prepared = TypeVar("_Prepared")  # rows as the kernel takes them


class _Blocks(Protocol[_Prepared]):
    """A set as the kernel takes it: block by block."""

    zeros: Tensor  # (n,) float64

    def block(self, rows: slice) -> _Prepared:
        """Rows of the set, prepared for the kernel."""

    def kernel(self, here: _Prepared, there: _Prepared) -> Tensor:
        """The kernel of a and b rows with each other: (a, b)."""


class _Set:
    """Rows of one set of features."""

    def __init__(self, x: Tensor, kernel: Polynomial):
        self._x, self._kernel = x, kernel
        self.zeros = x.new_zeros(len(x), dtype=torch.float64)

    def block(self, rows: slice) -> Rows:
        return self._kernel.rows(self._x[rows])

    def kernel(self, here: Rows, there: Rows) -> Tensor:
        return self._kernel(here, there)


class _Pairs:
    """Two sets of one size as one set of pairs, of which h is the kernel."""

    def __init__(self, x: Tensor, y: Tensor, kernel: Polynomial):
        self._x, self._y = _Set(x, kernel), _Set(y, kernel)
        self.zeros = self._x.zeros

    def block(self, rows: slice) -> tuple[Rows, Rows]:
        return self._x.block(rows), self._y.block(rows)

    def kernel(self, here: tuple[Rows, Rows], there: tuple[Rows, Rows]) -> Tensor:
        k = self._x.kernel
        alike = k(here[0], there[0]).add_(k(here[1], there[1]))
        return alike.sub_(k(here[0], there[1]).add_(k(here[1], there[0])))


class _Sums(NamedTuple):
    """Sums of a kernel over pairs of rows of two sets, or of one set without its diagonal."""

    rows: Tensor  # (n,) float64
    columns: Tensor  # (m,) float64
    squares: float  # of its squares over all pairs
    subsets: Tensor  # (s,) float64: over the pairs within each subset


def _sums(x: _Set, y: _Set, a: Tensor, b: Tensor) -> _Sums:
    """Sums over n and m rows with the memberships (s, n) and (s, m) of their subsets."""
    rows, columns = x.zeros.clone(), y.zeros.clone()
    subsets = rows.new_zeros(len(a))
    squares = 0.0
    for here in _blocks(len(rows)):
        left = x.block(here)
        for there in _blocks(len(columns)):
            k = x.kernel(left, y.block(there))
            rows[here] += k.sum(1)
            columns[there] += k.sum(0)
            subsets += ((a[:, here] @ k) * b[:, there]).sum(1)
            squares += float(k.square_().sum())
    return _Sums(rows, columns, squares, subsets)


def _blocks(n: int, first: int = 0) -> Iterator[slice]:
    """Blocks of rows; small sets have two, so that symmetry saves work there too."""
    size = _BLOCK if n > 2 * _BLOCK else -(-n // 2)
    for start in range(first, n, size):
        yield slice(start, start + size)


def _own_sums(x: _Blocks[_Prepared], a: Tensor) -> _Sums:
    """Sums over one set with itself; each pair is computed once."""
    rows, subsets = x.zeros.clone(), x.zeros.new_zeros(len(a))
    squares = 0.0
    for here in _blocks(len(rows)):
        left = x.block(here)
        for there in _blocks(len(rows), here.start):
            k = x.kernel(left, x.block(there))
            if there == here:  # half of the square on the diagonal, as all of it counts twice
                k.triu_(1)
            rows[here] += k.sum(1)
            rows[there] += k.sum(0)
            subsets += 2 * ((a[:, here] @ k) * a[:, there]).sum(1)
            squares += 2 * float(k.square_().sum())
    return _Sums(rows, rows, squares, subsets)


class _Moments(NamedTuple):
    """What the variance of the estimate depends on: variances of the parts of the kernel.

    With h(x) = E k(x, X) - E k(x, Y) for a real x, and likewise for a fake one, and with the
    kernels centred in both arguments (Hoeffding's decomposition). Pairs are one set, the real one,
    and their kernel is h.
    """

    value: float  # of the estimate
    real: float  # var h(x)
    real_real: float  # var of the centred k(x, x')
    fake: float = 0.0
    fake_fake: float = 0.0
    real_fake: float = 0.0

    def variance(self, sizes: tuple[int, int]) -> float:
        """Variance of the estimate from n real and m fake samples."""
        n, m = sizes
        first = 4 * self.real / n + 4 * self.fake / m
        second = 2 * self.real_real / (n * (n - 1)) + 2 * self.fake_fake / (m * (m - 1))
        second += 4 * self.real_fake / (n * m)
        # Equal laws have no first order, but an estimate of it that is as often below 0 as above;
        # taking only what is above would count chance as variance.
        return max(first + second, second / 2)


def _compare(
    x: Tensor,  # (n, d)
    y: Tensor,  # (m, d)
    kernel: Polynomial,
    a: Tensor,  # (s, n) 1 where the row belongs to the subset
    b: Tensor,  # (s, m)
    paired: bool,
) -> tuple[Tensor, _Moments]:
    """The estimates (s,) from the subsets, and the moments as all rows have them."""
    size = a.sum(1, dtype=torch.float64)
    if paired:
        pairs = _own_sums(_Pairs(x, y, kernel), a)
        means, centred = _own_moments(pairs)
        first = float(means.var()) - centred / (len(x) - 1)
        return pairs.subsets / (size * (size - 1)), _Moments(float(means.mean()), first, centred)

    n, m = len(x), len(y)
    of_x, of_y = _Set(x, kernel), _Set(y, kernel)
    xx, yy, xy = _own_sums(of_x, a), _own_sums(of_y, b), _sums(of_x, of_y, a, b)
    values = (xx.subsets + yy.subsets) / (size * (size - 1)) - 2 * xy.subsets / size.square()
    (rows, xx_var), (columns, yy_var) = map(_own_moments, (xx, yy))
    rows_across, columns_across = xy.rows / m, xy.columns / n
    across = rows_across.mean()
    xy_var = max(
        0.0,
        float(
            xy.squares / (n * m)
            - rows_across.square().mean()
            - columns_across.square().mean()
            + across.square()
        ),
    )
    # Means over finitely many columns vary by their noise too.
    real = float((rows - rows_across).var()) - xx_var / (n - 1) - xy_var / m
    fake = float((columns - columns_across).var()) - yy_var / (m - 1) - xy_var / n
    value = float(rows.mean() + columns.mean() - 2 * across)
    return values, _Moments(value, real, xx_var, fake, yy_var, xy_var)


def _own_moments(own: _Sums) -> tuple[Tensor, float]:
    """Mean of each row (n,), and the variance of the centred kernel.

    As in a two-way analysis of variance: what row and column means leave of the mean square.
    """
    n = len(own.rows)
    means = own.rows / (n - 1)
    centred = own.squares / (n * (n - 1)) - 2 * means.square().mean() + means.mean().square()
    return means, max(0.0, float(centred))


def _measure(
    sets: tuple[Tensor, Tensor],
    draws: tuple[Tensor, Tensor],
    kernel: Polynomial,
    paired: bool,
) -> tuple[Tensor, _Moments]:
    """The estimates (s,) from the subsets, and the moments, by the cheaper of two exact ways.

    Either the kernel of all rows with each other, block by block, of which subsets take what is
    theirs by products with their memberships; or the kernel within each subset by itself.
    """
    (n, m), d = map(len, sets), sets[0].shape[1]
    subsets, size = draws[0].shape
    if (n * n / 2 + m * m / 2 + n * m) * (d + subsets) <= 2 * subsets * size**2 * d:
        of_x, of_y = map(_members, draws, sets, (kernel.dtype,) * 2)
        return _compare(*sets, kernel, of_x, of_y, paired)
    values, moments = [], []
    for rows in zip(*draws, strict=True):
        x, y = (z[row.to(z.device)] for z, row in zip(sets, rows, strict=True))
        _, found = _compare(x, y, kernel, *_no_subsets(x, y, kernel), paired)
        values.append(found.value)
        moments.append(found)
    estimates = torch.tensor(values, dtype=torch.float64)
    return estimates, _Moments(*(sum(v) / subsets for v in zip(*moments, strict=True)))


def _no_subsets(x: Tensor, y: Tensor, kernel: Polynomial) -> tuple[Tensor, Tensor]:
    dtype = kernel.dtype
    return x.new_empty(0, len(x), dtype=dtype), y.new_empty(0, len(y), dtype=dtype)


def _members(draws: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """(s, size) rows -> (s, n) 0 and 1."""
    draws = draws.to(x.device)
    members = torch.zeros(len(draws), len(x), dtype=dtype, device=x.device)
    return members.scatter_(1, draws, 1)
