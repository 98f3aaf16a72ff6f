"""The Frechet distance between Gaussians fitted to features: FID, whatever the features are.

d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr (S1 S2)^(1/2)  (D. C. Dowson, B. V. Landau, "The
Frechet distance between multivariate normal distributions", Journal of Multivariate Analysis 12,
1982); images were first measured by it in M. Heusel et al., "GANs Trained by a Two Time-Scale
Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
"""

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from fastlatent.metrics.sets import check_paired, check_sets, plain_arithmetic
from fastlatent.metrics.statistics import asymmetry
from fastlatent.metrics.units import unit_scale
from fastlatent.ops import project_psd, trace_sqrtm
from fastlatent.ops.roots import (
    Diagnostics,
    Factor,
    nuclear_norm_of_product,
    trace_sqrtm_gradients,
)


@overload
def frechet_distance(
    mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, diagnostics: Literal[False] = False
) -> Tensor: ...
@overload
def frechet_distance(
    mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, diagnostics: Literal[True]
) -> tuple[Tensor, Diagnostics]: ...
def frechet_distance(
    mu1: Tensor,  # (..., d)
    sigma1: Tensor,  # (..., d, d), a covariance
    mu2: Tensor,  # (..., d)
    sigma2: Tensor,  # (..., d, d), a covariance
    diagnostics: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:  # (...) float64
    """The squared Frechet distance of two Gaussians (Dowson and Landau 1982), at least 0.

    Computed in float64, and differentiable. `diagnostics` also returns how
    fastlatent.ops.trace_sqrtm found its part. A distance that rounding makes negative is returned
    as 0. A sigma may be asymmetric by rounding, which `fastlatent.metrics.statistics.asymmetry`
    measures; its symmetric part counts. Raises TypeError for other dtypes than float32 and float64.
    Raises ValueError for shapes that do not fit and for values that are not finite. Raises
    ValueError for a sigma that is no covariance; it says how far from one, and what repairs it.
    """
    arguments = {"mu1": mu1, "sigma1": sigma1, "mu2": mu2, "sigma2": sigma2}
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"frechet_distance: {name} must be a float32 or float64 tensor")
        if not value.isfinite().all():
            raise ValueError(f"frechet_distance: {name} must be finite; it holds NaN or infinity")
    shape = (*mu1.shape, *mu1.shape[-1:])
    if mu1.dim() < 1 or mu2.shape != mu1.shape or sigma1.shape != shape or sigma2.shape != shape:
        raise ValueError(
            "frechet_distance: both mu must have shape (..., d) and both sigma (..., d, d); got "
            + ", ".join(f"{name} {tuple(value.shape)}" for name, value in arguments.items())
        )
    for name in ("sigma1", "sigma2"):
        excess = asymmetry(arguments[name])
        if excess > 1:
            raise ValueError(
                f"frechet_distance: {name} must be symmetric; its two triangles differ by "
                f"{excess:.3g} times what rounding explains"
            )
    wide1, wide2 = _wide(sigma1), _wide(sigma2)
    how = None
    try:
        if diagnostics:
            root, how = trace_sqrtm(wide1, wide2, diagnostics=True)
        else:
            root = trace_sqrtm(wide1, wide2)
    except ValueError as error:
        words = (
            str(error).replace("trace_sqrtm: a ", "sigma1 ").replace("trace_sqrtm: b ", "sigma2 ")
        )
        raise ValueError(f"frechet_distance: {words}") from None
    means = (mu1.double() - mu2.double()).square().sum(-1)
    traces = (wide1 + wide2).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = (means + traces - 2 * root).clamp_min(0)
    return distance if how is None else (distance, how)


def _wide(sigma: Tensor) -> Tensor:
    """In float64; eigenvalues below 0 that rounding in float32 explains are 0."""
    wide = sigma.double()
    if sigma.dtype == torch.float64 or not torch.linalg.cholesky_ex(wide.detach()).info.any():
        return wide
    repaired = project_psd(wide.detach())
    excess = torch.linalg.matrix_norm(wide.detach() - repaired, 2)
    most = torch.linalg.matrix_norm(wide.detach(), 2)
    if (excess > sigma.shape[-1] * torch.finfo(sigma.dtype).eps * most).any():
        return wide  # trace_sqrtm says what is wrong with it
    return wide + (repaired - wide.detach())


class Features(NamedTuple):
    """Centred features as a factor of their covariance."""

    mean: Tensor  # (d,)
    rows: Tensor  # (n - 1, d): covariance = rows^T rows


def _centred(x: Tensor) -> Features:
    """A reflection puts the mean into the first row, which is dropped: n - 1 rows are left.

    The n centred rows themselves would have a singular value 0, which rounding would spoil.
    """
    n, mean = len(x), x.mean(0)
    x = x - mean
    axis = torch.full((n,), 1 / math.sqrt(n), dtype=x.dtype, device=x.device)
    axis[0] += 1  # the reflection that takes ones / sqrt(n) to -e_0
    x = x - torch.outer(axis / (1 + 1 / math.sqrt(n)), axis @ x)
    return Features(mean, x[1:] / math.sqrt(n - 1))


@overload
def frechet_from_features(
    real: Tensor, fake: Tensor, diagnostics: Literal[False] = False
) -> Tensor: ...
@overload
def frechet_from_features(
    real: Tensor, fake: Tensor, diagnostics: Literal[True]
) -> tuple[Tensor, Diagnostics]: ...
def frechet_from_features(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    diagnostics: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:  # () float64
    """The squared Frechet distance between the sets, with covariances of n - 1; differentiable.

    A set of fewer rows than d is its own factor. No d x d matrix is formed for it, so the cost
    falls with n, and nothing is singular on the way. Raises TypeError or ValueError as
    frechet_distance, and for fewer than 2 rows.
    """
    check_sets("frechet_from_features", real, fake)
    scale = unit_scale(real, fake)
    x, y = (_centred(features.double() * scale) for features in (real, fake))
    means = (x.mean - y.mean).square().sum()
    d, how = real.shape[1], None
    if min(len(x.rows), len(y.rows)) >= d:
        covariances = (x.rows.mT @ x.rows, y.rows.mT @ y.rows)
        if not diagnostics:
            root = trace_sqrtm(*covariances)
        else:
            root, how = trace_sqrtm(*covariances, diagnostics=True)
    elif torch.is_grad_enabled() and (x.rows.requires_grad or y.rows.requires_grad):
        if diagnostics:
            with torch.no_grad():
                how = _low_rank(x.rows, y.rows)[1]
        root = torch.linalg.svdvals(x.rows @ y.rows.mT).sum()
    else:
        root, found = _low_rank(x.rows, y.rows)
        how = found if diagnostics else None
    distance = means + x.rows.square().sum() + y.rows.square().sum() - 2 * root
    distance = distance.clamp_min(0) / scale / scale
    return distance if how is None else (distance, how)


def _low_rank(x: Tensor, y: Tensor) -> tuple[Tensor, Diagnostics]:
    """tr (S1 S2)^(1/2) of factors (n, d) and (m, d), of which one at least has n < d."""
    a, b = _factor(x), _factor(y)
    found = nuclear_norm_of_product(a, b, scale=x.square().sum() + y.square().sum())
    ranks = (a.w.shape[-1], b.w.shape[-1])
    how = Diagnostics(found.route, ranks, found.largest / found.smallest, found.bound)
    return found.value, how


def _factor(rows: Tensor) -> Factor:
    """The triangle of a QR decomposition where there are more rows than columns."""
    n, d = rows.shape
    if n <= d:
        return Factor(rows.mT, False)
    return Factor(torch.linalg.qr(rows, mode="r").R.mT, False)


@plain_arithmetic
def frechet_standard_error(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    together: int = 1,  # rows of fake that are drawn as one
    paired: bool = False,  # each row of fake is made from the same row of real
) -> Tensor:  # () float64
    """Standard error of frechet_from_features over draws of the samples, to first order.

    The distance is a function of the weights of the samples. Its derivatives by them are the
    influences of the samples. Their variances, over n and over m, add up (B. Efron, "Nonparametric
    estimates of standard error", Biometrika 68, 1981, the infinitesimal jackknife). It leaves out
    the bias, which is positive and falls with 1 / n. It is too large where both sets come from one
    distribution, by 1.2 to 1.5 in simulations. The first order vanishes there, and the derivatives
    have twice the variance of the second, which makes a factor of 2^(1/2). Fake samples may depend
    on each other, as images along one walk do: then `together` of them in succession count as one
    draw. They may be made from the real ones, as reconstructions are: then pairs are draws. Raises
    ValueError where m is no multiple of `together`, and for paired sets of different sizes.
    """
    check_sets("frechet_standard_error", real, fake)
    if paired:
        check_paired("frechet_standard_error", real, fake)
    if together < 1 or len(fake) % together:
        raise ValueError(
            f"frechet_standard_error: the {len(fake)} rows of fake must be a multiple of together; "
            f"got {together}"
        )
    scale = unit_scale(real, fake)
    real, fake = real.double() * scale, fake.double() * scale
    x, y = real - real.mean(0), fake - fake.mean(0)
    apart = real.mean(0) - fake.mean(0)
    transports = _transports(x / math.sqrt(len(x)), y / math.sqrt(len(y)))
    of_real, of_fake = (
        2 * rows @ shift + rows.square().sum(1) - transported
        for rows, shift, transported in zip((x, y), (apart, -apart), transports, strict=True)
    )
    draws = [of_real + of_fake] if paired else [of_real, of_fake]
    draws[-1] = draws[-1].unflatten(0, (-1, together)).mean(1)
    variance = torch.stack([drawn.var(correction=0) / len(drawn) for drawn in draws]).sum()
    return variance.sqrt() / scale / scale


def _transports(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """n x_i^T T x_i of each row with the map T from N(0, x^T x) to N(0, y^T y), and the reverse."""
    n, m, d = len(x), len(y), x.shape[1]
    if n > d and m > d:
        a, b = (z.mT @ z for z in (x, y))
        s, t = trace_sqrtm_gradients(a, b)
        return 2 * n * ((x @ s) * x).sum(1), 2 * m * ((y @ t) * y).sum(1)
    (basis_x, x), (basis_y, y) = map(_thin, (x, y))
    p, s, q = torch.linalg.svd(x @ y.mT, full_matrices=False)
    return n * ((basis_x @ p).square() @ s), m * ((basis_y @ q.mT).square() @ s)


def _thin(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, d) as an orthonormal basis times min(n, d) rows."""
    if len(x) > x.shape[1]:
        return tuple(torch.linalg.qr(x))
    return torch.eye(len(x), dtype=x.dtype, device=x.device), x


class Extrapolated(NamedTuple):
    """A distance extrapolated to infinitely many samples."""

    value: float
    error: float  # of the choice of both sets, and of the line through the random subsets
    sizes: list[int]
    distances: list[float]


@plain_arithmetic
def frechet_infinity(
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    points: int = 15,
    smallest: int | None = None,  # subset; default: a tenth of m, at least 2
    seed: int = 0,
) -> Extrapolated:
    """The squared Frechet distance as the number of fake samples grows without bound.

    M. J. Chong, D. Forsyth, "Effectively Unbiased FID and Inception Score and where to find them",
    CVPR 2020: distances of random subsets of `points` sizes lie on a straight line over 1 / size.
    The real set stays as it is, and with it its own share of the bias. Raises ValueError for fewer
    than 3 points or subsets that do not fit.
    """
    check_sets("frechet_infinity", real, fake)
    smallest = max(2, len(fake) // 10) if smallest is None else smallest
    if points < 3 or not 2 <= smallest <= len(fake) - points + 1:
        raise ValueError(
            "frechet_infinity: points must be at least 3 and smallest at least 2, with as many "
            f"sizes up to the {len(fake):,} rows of fake; got {points} and {smallest}"
        )
    make = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(smallest, len(fake), points).round().long()
    distances = []
    for size in sizes.tolist():
        chosen = torch.randperm(len(fake), generator=make)[:size].to(fake.device)
        distances.append(float(frechet_from_features(real, fake[chosen])))
    line = torch.stack([torch.ones(points), 1 / sizes], 1).double()
    y = torch.tensor(distances, dtype=torch.float64)
    inverse = torch.linalg.inv(line.mT @ line)
    fit = inverse @ (line.mT @ y)
    spread = (y - line @ fit).norm() * (inverse[0, 0] / (points - 2)).sqrt()
    error = math.hypot(float(spread), float(frechet_standard_error(real, fake)))
    return Extrapolated(float(fit[0]), error, sizes.tolist(), distances)
