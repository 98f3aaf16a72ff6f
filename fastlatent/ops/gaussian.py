"""Likelihoods of discretized Gaussians: the last step of diffusion models (Ho et al. 2020, 3.3).

Bins and grids are those of `fastlatent.ops.logistic`; the first and the last bin are open. With
alpha and beta the distances from the mean to a bin's near and far edge in units of the scale, delta
their difference, z their mean and Q the normal distribution's upper tail,

    P(k) = Q(alpha) - Q(beta),    Q(alpha) for the open bins.

Tails are taken by erfcx(t) = e^(t^2) erfc(t), which neither under- nor overflows there. A bin that
is narrow, delta max(1, z) < 0.05, takes the series of its integral about its centre.

In place of the distribution function diffusion models use 0.5 (1 + tanh(g(z) / 2)), where
g(z) = sqrt(8 / pi) (z + 0.044715 z^3), and hold P above 1e-12. Under it g(z) is logistic, so the
likelihood is that of a logistic between g(alpha) and g(beta).
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.special import erfcx

from fastlatent.ops import _check
from fastlatent.ops._register import register, strict
from fastlatent.ops.logistic.arguments import check_bins, check_grid, check_single
from fastlatent.ops.logistic.cases import bins_and_parameters, upstream_gradient
from fastlatent.ops.logistic.cell import (
    NARROWEST,
    Cell,
    cell_on,
    log_prob_of,
    widen,
)
from fastlatent.ops.logistic.grid import Grid
from fastlatent.ops.logistic.layouts import centred_bins

CDFS = ("exact", "tanh")
_NARROW = 0.05
_FAR = 1e10  # up to here erfcx is taken; beyond, ratios of it change by less than rounding
_CERTAIN = {torch.float32: -12.0, torch.float64: -37.0}  # where Q(alpha) rounds to 1
_ROOT_HALF = math.sqrt(0.5)
_SLOPE, _CUBIC = math.sqrt(8 / math.pi), 0.044715  # of g
_SATURATED = 60.0  # distance at which the tanh is 1 in every dtype
_LEAST = math.log(1e-12)
_TILE, _TILE_OF_GPU = 1 << 15, 1 << 24  # elements taken at a time


def _scaled_tail(distance: Tensor) -> Tensor:
    """2 Q(distance) e^(distance^2 / 2), between the limits at which it is finite."""
    return erfcx(distance.clamp(_CERTAIN[distance.dtype], _FAR) * _ROOT_HALF)


def _log_tail(distance: Tensor) -> Tensor:
    """log Q(distance)."""
    outer = distance.clamp_min(0)
    beyond = (_scaled_tail(outer) / 2).log() - outer.square() / 2
    before = torch.log1p(-torch.erfc(-distance.clamp_max(0) * _ROOT_HALF) / 2)
    return torch.where(distance > 0, beyond, before)


def _log_ratio(c: Cell) -> Tensor:
    """log Q(beta) / Q(alpha), for alpha >= 0 and bins that are not narrow; there below -0.03."""
    ratio = _scaled_tail(c.beta) / _scaled_tail(c.alpha.clamp_min(0))
    return (ratio.log() - c.delta * c.z).clamp_max(-0.01)


def _about_mean(c: Cell) -> Tensor:
    """log P for alpha < 0 < beta and bins that are not narrow, whose P is above 0.01."""
    missing = (torch.erfc(c.beta * _ROOT_HALF) + torch.erfc(-c.alpha * _ROOT_HALF)) / 2
    inside = (torch.erf(c.beta * _ROOT_HALF) - torch.erf(c.alpha * _ROOT_HALF)) / 2
    return torch.where(
        missing < 0.5, torch.log1p(-missing.clamp_max(0.5)), inside.clamp_min(0.01).log()
    )


class _Narrow:
    """A narrow bin; one that is not stands in as of no width, at the mean."""

    def __init__(self, c: Cell) -> None:
        self.there = c.delta * c.z.clamp_min(1) < _NARROW
        self.z = torch.where(self.there, c.z, torch.zeros_like(c.z))
        delta = torch.where(self.there, c.delta, torch.zeros_like(c.delta))
        self.square = delta.square()
        self.step = delta * self.z
        moved = self.step.square()
        self.correction = (moved - self.square) / 24 + (
            moved.square() - 6 * moved * self.square + 3 * self.square.square()
        ) / 1920

    def log_prob(self, c: Cell) -> Tensor:
        density = -self.z.square() / 2 - math.log(2 * math.pi) / 2
        return c.log_delta + density + self.correction.log1p()

    def slopes(self) -> tuple[Tensor, Tensor]:
        factor = (-self.square / 8).exp() / (1 + self.correction)
        half = (self.step / 2).square()
        by_mean = factor * (1 + half / 6 + half.square() / 120) * self.z  # sinh(y) / y
        return by_mean, by_mean * self.z - factor * (self.step / 2).cosh()


def _exact(c: Cell) -> Tensor:
    narrow = _Narrow(c)
    tail = _log_tail(c.alpha)
    beyond = tail + (-torch.expm1(_log_ratio(c))).log()
    wide = torch.where(c.alpha >= 0, beyond, _about_mean(c))
    return torch.where(c.inner, torch.where(narrow.there, narrow.log_prob(c), wide), tail)


def _exact_slopes(c: Cell) -> tuple[Tensor, Tensor]:
    """d log P / d mean, in units of the scale and away from it, and d log P / d log_scale."""
    narrow = _Narrow(c)
    hazard = math.sqrt(2 / math.pi) / _scaled_tail(c.alpha)
    density = (-c.alpha.clamp_max(0).square() / 2).exp() / math.sqrt(2 * math.pi)
    near = torch.where(  # density at alpha over P
        c.alpha >= 0, hazard / -torch.expm1(_log_ratio(c)), density / _about_mean(c).exp()
    )
    fall = torch.expm1(-c.delta * c.z)  # density at beta over that at alpha, minus 1
    wide = -near * fall, -near * (c.delta * (fall + 1) + c.alpha * fall)
    ends = hazard, hazard * c.alpha.clamp_min(_CERTAIN[c.alpha.dtype])
    by_mean, by_log_scale = (
        torch.where(c.inner, torch.where(narrow.there, n, w), e)
        for n, w, e in zip(narrow.slopes(), wide, ends, strict=True)
    )
    return by_mean, by_log_scale


class _Bent:
    """The bin between g(alpha) and g(beta), of width `width`; distances held to what matters."""

    def __init__(self, c: Cell) -> None:
        self.alpha = c.alpha.clamp(-_SATURATED, _SATURATED)
        self.beta = c.beta.clamp(-_SATURATED, _SATURATED)
        self.z = c.z.clamp_max(_SATURATED)
        self.delta = c.delta.clamp_max(_SATURATED)
        self.spread = 3 * self.z.square() + self.delta.square() / 4  # (beta^3 - alpha^3) / delta
        self.steepness = _SLOPE * (1 + _CUBIC * self.spread)  # width / delta
        self.width = self.delta * self.steepness

    @staticmethod
    def bend(distance: Tensor) -> Tensor:
        return _SLOPE * distance * (1 + _CUBIC * distance.square())

    @staticmethod
    def slope(distance: Tensor) -> Tensor:
        return _SLOPE * (1 + 3 * _CUBIC * distance.square())

    def cell(self, c: Cell) -> Cell:
        return c._replace(
            alpha=self.bend(self.alpha),
            beta=self.bend(self.beta),
            delta=self.width,
            log_delta=c.log_delta + self.steepness.log(),
        )


def _tanh(c: Cell) -> Tensor:
    return log_prob_of(_Bent(c).cell(c)).clamp_min(_LEAST)


def _tanh_slopes(c: Cell) -> tuple[Tensor, Tensor]:
    """As `_exact_slopes`; 0 where P is held."""
    bent = _Bent(c)
    there = log_prob_of(bent.cell(c)) >= _LEAST
    near = bent.bend(bent.alpha).sigmoid() * bent.slope(bent.alpha)
    far = (-bent.bend(bent.beta)).sigmoid() * bent.slope(bent.beta)
    width = bent.width.clamp(NARROWEST, _SATURATED)
    inner = c.inner * width / torch.expm1(width) / bent.steepness  # delta / expm1(width)
    far = c.inner * far
    by_mean = near - far - inner * 6 * _SLOPE * _CUBIC * bent.z
    by_log_scale = (
        near * bent.alpha - far * bent.beta - inner * _SLOPE * (1 + 3 * _CUBIC * bent.spread)
    )
    zero = torch.zeros_like(by_mean)
    return torch.where(there, by_mean, zero), torch.where(there, by_log_scale, zero)


def _reference(
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int = 256,
    grid: str = "centred",
    cdf: str = "exact",
) -> Tensor:
    cell = cell_on(bins, mean, log_scale, Grid.of(n_bins, grid, None))
    return (_exact if cdf == "exact" else _tanh)(cell).contiguous()


def _backward_reference(
    grad: Tensor, bins: Tensor, mean: Tensor, log_scale: Tensor, n_bins: int, grid: str, cdf: str
) -> tuple[Tensor, Tensor]:
    of = Grid.of(n_bins, grid, None)
    cell = cell_on(bins, mean, log_scale, of)
    by_mean, by_log_scale = (_exact_slopes if cdf == "exact" else _tanh_slopes)(cell)
    by_mean = by_mean * cell.sign * cell.inverse_scale
    floored = widen(log_scale) < of.floor
    by_log_scale = torch.where(floored, torch.zeros_like(by_log_scale), by_log_scale)
    by_mean, by_log_scale = (
        (grad * slope).to(mean.dtype).contiguous() for slope in (by_mean, by_log_scale)
    )
    return by_mean, by_log_scale


def _kernel(
    bins: Tensor, mean: Tensor, log_scale: Tensor, n_bins: int, grid: str, cdf: str
) -> Tensor:
    if bins.device.type == "cpu" or strict():
        wide = bins.int()  # n_bins is beyond uint8
        if not bool(((wide >= 0) & (wide < n_bins)).all()):
            raise ValueError(f"discretized_gaussian_log_prob: bins must be in 0 to {n_bins - 1}")
    out = torch.empty(bins.shape, dtype=widen(mean[:0]).dtype, device=bins.device)
    for part, k, m, s in _tiles(out.view(-1), bins, mean, log_scale):
        part.copy_(_reference(k, m, s, n_bins, grid, cdf))
    return out


def _backward_kernel(
    grad: Tensor, bins: Tensor, mean: Tensor, log_scale: Tensor, n_bins: int, grid: str, cdf: str
) -> tuple[Tensor, Tensor]:
    by_mean, by_log_scale = (
        torch.empty(bins.shape, dtype=mean.dtype, device=bins.device) for _ in range(2)
    )
    outs = by_mean.view(-1), by_log_scale.view(-1)
    for mean_part, scale_part, g, k, m, s in _tiles(*outs, grad, bins, mean, log_scale):
        slopes = _backward_reference(g, k, m, s, n_bins, grid, cdf)
        mean_part.copy_(slopes[0])
        scale_part.copy_(slopes[1])
    return by_mean, by_log_scale


def _tiles(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of the flattened tensors whose intermediate results stay in a cache."""
    tile = _TILE if tensors[0].device.type == "cpu" else _TILE_OF_GPU
    return zip(*(x.reshape(-1).split(tile) for x in tensors), strict=True)


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for cdf in CDFS:
        for n, grid in [(32, "symmetric"), (16, "unit")]:
            yield *bins_and_parameters((3, 3), n, grid, device, dtype, calm=True), n, grid, cdf
        for shape, n, grid in [
            ((64, 150), 256, "centred"),
            ((2, 3, 14, 15), 256, "unit"),
            ((803,), 2, "centred"),
            ((0, 3), 256, "unit"),
        ]:
            yield *bins_and_parameters(shape, n, grid, device, dtype), n, grid, cdf
        bins, mean, log_scale = bins_and_parameters((30, 40), 32, "symmetric", device, dtype)
        columns = log_scale.t().contiguous().t()[:, ::2]
        yield bins[:, ::2], mean[:, 1::2], columns, 32, "symmetric", cdf


def _backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for bins, *rest in _cases(device, dtype):
        yield upstream_gradient(bins.shape, device, dtype), bins, *rest


_SCALARS = "int n_bins, str grid, str cdf"
_backward = register(
    "discretized_gaussian_backward(Tensor grad, Tensor bins, Tensor mean, Tensor log_scale, "
    f"{_SCALARS}) -> (Tensor, Tensor)",
    _backward_reference,
    cases=_backward_cases,
    linalg=_backward_kernel,
)

_op = register(
    f"discretized_gaussian_log_prob(Tensor bins, Tensor mean, Tensor log_scale, {_SCALARS}) "
    "-> Tensor",
    _reference,
    cases=_cases,
    linalg=_kernel,
    backward=lambda args, grads: (None, *_backward(grads[0], *args)),
)


@_op.public
def discretized_gaussian_log_prob(
    bins: Tensor,  # (...) uint8 or int32 in 0 ... n_bins - 1
    mean: Tensor,  # (...) on the grid's scale
    log_scale: Tensor,  # (...) logarithm of the standard deviation
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    cdf: Literal["exact", "tanh"] = "exact",
) -> Tensor:  # (...) nats, float32 or the parameters' precision if that is higher
    """log P(bin) of one Gaussian for each value, the first and the last bin open.

    "exact" is the likelihood itself, finite and with its right gradient far in the tails. "tanh" is
    the approximation of diffusion models, which holds P above 1e-12, with no gradient below: it
    gives their published bits per dimension. See `from_diffusion`.

    Means and log-scales have the domain of `discretized_logistic_log_prob`: log-scales below -60
    count as -60 and get no gradient. A NaN parameter gives NaN there only.

    Raises TypeError for bins that are not uint8 or int32 or parameters that are not floating.
    Raises ValueError for shapes or devices that differ, an unknown grid or cdf, n_bins outside 2
    ... 65536 and, on CPU or under FASTLATENT_STRICT=1, a bin outside the grid.
    """
    op = "discretized_gaussian_log_prob"
    check_single(op, bins, mean, log_scale)
    of = check_grid(op, n_bins, grid, None)
    _check.choice(op, "cdf", cdf, CDFS)
    check_bins(op, bins, mean, of)
    return _op(bins, mean, log_scale, of.n, of.name, cdf)


def from_diffusion(
    x: Tensor,  # (...) in [-1, 1]
    means: Tensor,  # (...)
    log_scales: Tensor,  # (...)
    n_bins: int = 256,
) -> tuple[Tensor, Tensor, Tensor]:  # bins, means, log_scales
    """For diffusion models: the arguments of their `discretized_gaussian_log_likelihood`.

    `discretized_gaussian_log_prob(*from_diffusion(x, means, log_scales), cdf="tanh")` is what that
    function returns, to rounding; without `cdf` it is the likelihood that it approximates. Where
    `n_bins` is not 256, both take it.

    Raises TypeError for an x that is not floating. Raises ValueError for shapes that differ and for
    an x that is off the grid 2 k / (n_bins - 1) - 1, on a CPU or under FASTLATENT_STRICT=1.
    """
    op = "from_diffusion"
    _check.tensor(op, "x", x, None, _check.FLOATING)
    for name, other in (("means", means), ("log_scales", log_scales)):
        _check.tensor(op, name, other, None, _check.FLOATING)
        if other.shape != x.shape:
            raise ValueError(
                f"{op}: {name} must have the shape of x, {tuple(x.shape)}; got {tuple(other.shape)}"
            )
    return centred_bins(op, x, check_grid(op, n_bins, "centred", None).n), means, log_scales
