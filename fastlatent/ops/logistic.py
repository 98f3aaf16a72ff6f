"""Likelihoods of discretized logistics: exact, one or a mixture for each pixel.

A value is a bin k of n. With X = 2k - n + 1 its centre is (X + b) / gamma and its edges are (X - 1 +
b) / gamma and (X + 1 + b) / gamma, where the grid gives (gamma, b):

- "centred": (n - 1, 0), centres from -1 to 1 (PixelCNN++, VDVAE);
- "symmetric": (n, 0), n equal bins of [-1, 1];
- "unit": (2n, n), n equal bins of [0, 1].

The first and the last bin are open, so the n probabilities sum to 1. Under a logistic of mean m and
scale s, with alpha and beta the distances from m to the bin's near and far edge in units of s and
delta = beta - alpha,

    P(k) = (1 - e^-delta) sigmoid(-alpha) sigmoid(beta),    sigmoid(-alpha) for the open bins:

no difference of two sigmoids is ever taken, so nothing cancels. The mixture follows Salimans et al.
2017 (PixelCNN++), section 2.1 and 2.2: all channels of a pixel share the component, and with three
coupled channels the means of green and blue move with the observed red and green.

Layout of the parameters along dimension 1, K components: K logits, then for each channel K means
and K log-scales, followed, where channels are coupled, by K coefficients before their tanh: red to
green, red to blue, green to blue. That is K (1 + 2 c) planes, or 10 K.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastlatent.ops import _check
from fastlatent.ops._register import register, strict, threads

GRIDS = ("centred", "symmetric", "unit")
REDUCTIONS = ("image", "none")
KINDS = ("quantized", "continuous")
_BINS = (torch.uint8, torch.int32)
_UNCLAMPED = -60.0  # log-scale below which float32 could overflow


class Grid(NamedTuple):
    """n bins; bin k is centred at (2k - n + 1 + shift) / gamma."""

    n: int
    gamma: int
    shift: int
    floor: float  # of the log-scales

    @staticmethod
    def of(grid: str, n_bins: int, min_log_scale: float | None) -> "Grid":
        gamma = {"centred": n_bins - 1, "symmetric": n_bins, "unit": 2 * n_bins}[grid]
        floor = _UNCLAMPED if min_log_scale is None else min_log_scale
        return Grid(n_bins, gamma, n_bins if grid == "unit" else 0, floor)


class _Cell(NamedTuple):
    """A bin under a logistic; lengths in units of the scale."""

    inner: Tensor  # neither the first nor the last bin
    sign: Tensor  # of the derivative of log P with respect to the mean
    alpha: Tensor
    beta: Tensor
    delta: Tensor
    z: Tensor  # |centre - mean|
    inverse_scale: Tensor


def _cell(bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid) -> _Cell:
    """`mean` counts half-widths of a bin from the middle of the grid."""
    x = (2 * bins - (grid.n - 1)).to(mean.dtype)
    inverse_scale = (-_clamped(log_scale, grid)).exp()
    h = inverse_scale / grid.gamma
    lower, upper = (x - 1) - mean, (x + 1) - mean
    first, last = bins == 0, bins == grid.n - 1
    right = ((x >= mean) & ~first) | last
    return _Cell(
        inner=~(first | last),
        sign=torch.where(right, 1.0, -1.0).to(mean.dtype),
        alpha=torch.where(right, lower, -upper) * h,
        beta=torch.where(right, upper, -lower) * h,
        delta=2 * h,
        z=(x - mean).abs() * h,
        inverse_scale=inverse_scale,
    )


def _clamped(log_scale: Tensor, grid: Grid) -> Tensor:
    """At least grid.floor, with gradient 1 at equality."""
    return torch.where(log_scale < grid.floor, torch.full_like(log_scale, grid.floor), log_scale)


def _log_prob(c: _Cell) -> Tensor:
    inner = (-torch.expm1(-c.delta)).log() + logsigmoid(c.beta)
    return logsigmoid(-c.alpha) + torch.where(c.inner, inner, torch.zeros_like(inner))


def _slopes(c: _Cell, log_scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """d log P / d mean and d log P / d log_scale."""
    sigma = c.alpha.sigmoid()
    spread = -torch.expm1(-2 * c.z) * c.beta.sigmoid()
    mean = c.sign * sigma * torch.where(c.inner, spread, torch.ones_like(spread)) * c.inverse_scale
    width = c.delta * (-c.delta).exp() / -torch.expm1(-c.delta)
    loss = c.beta * (-c.beta).sigmoid() + width
    slope = c.alpha * sigma - torch.where(c.inner, loss, torch.zeros_like(loss))
    return mean, torch.where(log_scale < grid.floor, torch.zeros_like(slope), slope)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# One logistic for each value


def _single_reference(
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int = 256,
    grid: str = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    centre = of.gamma * _widen(mean) - of.shift
    return _log_prob(_cell(bins.int(), centre, _widen(log_scale), of)).contiguous()


def _single_backward_reference(
    grad: Tensor,
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> tuple[Tensor, Tensor]:
    of = Grid.of(grid, n_bins, min_log_scale)
    scale = _widen(log_scale)
    cell = _cell(bins.int(), of.gamma * _widen(mean) - of.shift, scale, of)
    slopes = _slopes(cell, scale, of)
    by_mean, by_log_scale = ((grad * slope).to(mean.dtype).contiguous() for slope in slopes)
    return by_mean, by_log_scale


def _single_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for n, grid in [(8, "centred"), (32, "symmetric"), (16, "unit")]:
        yield *_values((3, 3), n, grid, device, dtype, calm=True), n, grid, -7.0
    for shape, n, grid, floor in [
        ((64, 150), 256, "centred", -7.0),
        ((2, 3, 14, 15), 256, "unit", -3.0),
        ((803,), 2, "centred", -3.0),
        ((21, 33), 65536, "unit", None),
        ((0, 3), 256, "unit", -7.0),
    ]:
        yield *_values(shape, n, grid, device, dtype), n, grid, floor
    bins, mean, log_scale = _values((30, 40), 32, "symmetric", device, dtype)
    yield bins[:, ::2], mean[:, 1::2], log_scale.t().contiguous().t()[:, ::2], 32, "symmetric", -7.0


def _single_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for bins, *rest in _single_cases(device, dtype):
        yield _upstream(bins.shape, device, dtype), bins, *rest


def _single_cpp(
    core: Any,
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    out = torch.empty(bins.shape, dtype=_widen(mean[:0]).dtype)
    core.logistic_log_prob(_flat(bins), _flat(mean), _flat(log_scale), *of, _flat(out), threads())
    return out


def _single_backward_cpp(
    core: Any,
    grad: Tensor,
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> tuple[Tensor, Tensor]:
    of = Grid.of(grid, n_bins, min_log_scale)
    by_mean, by_log_scale = torch.empty(bins.shape, dtype=mean.dtype), torch.empty(
        bins.shape, dtype=mean.dtype
    )
    inputs = map(_flat, (grad, bins, mean, log_scale))
    core.logistic_backward(*inputs, *of, _flat(by_mean), _flat(by_log_scale), threads())
    return by_mean, by_log_scale


_single_backward = register(
    "discretized_logistic_backward(Tensor grad, Tensor bins, Tensor mean, Tensor log_scale, "
    "int n_bins, str grid, float? min_log_scale) -> (Tensor, Tensor)",
    _single_backward_reference,
    cases=_single_backward_cases,
    gradient="true",
    discrete=(False, False),
    dtypes=_check.FLOATING,
    cpp=_single_backward_cpp,
)

_single = register(
    "discretized_logistic_log_prob(Tensor bins, Tensor mean, Tensor log_scale, int n_bins, "
    "str grid, float? min_log_scale) -> Tensor",
    _single_reference,
    cases=_single_cases,
    gradient="true",
    dtypes=_check.FLOATING,
    cpp=_single_cpp,
    backward=lambda args, grads: (None, *_single_backward(grads[0], *args), None, None, None),
)


@_single.public
def discretized_logistic_log_prob(
    bins: Tensor,  # (...) uint8 or int32 in 0 ... n_bins - 1
    mean: Tensor,  # (...) on the grid's scale
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) nats, float32 or the parameters' precision if that is higher
    """log P(bin) of one logistic for each value, with its closed gradient; relative accuracy.

    Log-scales below `min_log_scale` count as that and get no gradient (at equality they do);
    None means -60. A NaN parameter gives NaN there only.

    Raises TypeError for bins that are not uint8 or int32 or parameters that are not floating,
    ValueError for shapes or devices that differ, an unknown grid, n_bins outside 2 ... 65536,
    min_log_scale below -60 and, on CPU or under FASTLATENT_STRICT=1, a bin outside the grid.
    """
    op = "discretized_logistic_log_prob"
    _check.tensor(op, "bins", bins, None, _BINS)
    _check.tensor(op, "mean", mean, None, _check.FLOATING)
    _check.tensor(op, "log_scale", log_scale, None, _check.FLOATING)
    _check.alike(op, mean=mean, log_scale=log_scale)
    for name, other in (("mean", mean), ("log_scale", log_scale)):
        if other.shape != bins.shape:
            raise ValueError(
                f"{op}: {name} must have the shape of bins, {tuple(bins.shape)}; "
                f"got {tuple(other.shape)}"
            )
    _check_grid(op, n_bins, grid, min_log_scale)
    _check_bins(op, bins, mean, n_bins)
    return _single(bins, mean, log_scale, n_bins, grid, min_log_scale)


# A mixture for each pixel


class Planes(NamedTuple):
    """The parameters of a mixture, (n, ..., s) for s pixels."""

    logits: Tensor  # (n, K, s)
    means: Tensor  # (n, c, K, s)
    log_scales: Tensor  # (n, c, K, s)
    coefficients: Tensor | None  # (n, 3, K, s), before their tanh

    @staticmethod
    def of(params: Tensor, channels: int, coupled: bool) -> "Planes":
        wide = _widen(params).flatten(2)
        k = components(params.shape[1], channels, coupled)
        rest = wide[:, k:].unflatten(1, (channels, 3 if coupled else 2, k))
        means, log_scales, *coefficients = rest.unbind(2)
        return Planes(wide[:, :k], means, log_scales, coefficients[0] if coupled else None)


def components(planes: int, channels: int, coupled: bool) -> int:
    """K, from the number of parameter planes."""
    return planes // (10 if coupled else 1 + 2 * channels)


def _is_coupled(coupled: bool | None, channels: int) -> bool:
    return channels == 3 if coupled is None else coupled


def _channel_means(p: Planes, x: Tensor, grid: Grid) -> Tensor:
    """Means given the values x (n, c, s) of the channels before, as _cell takes them."""
    means = grid.gamma * p.means - grid.shift
    if p.coefficients is None:
        return means
    tau = p.coefficients.tanh()
    red, green = x[:, 0, None], x[:, 1, None]
    shifts = (torch.zeros_like(tau[:, 0]), tau[:, 0] * red, tau[:, 1] * red + tau[:, 2] * green)
    return means + torch.stack(shifts, 1)


def _mixture_cells(bins: Tensor, p: Planes, grid: Grid) -> _Cell:
    bins = bins.int().flatten(2)
    x = (2 * bins - (grid.n - 1)).to(p.means.dtype)
    return _cell(bins[:, :, None], _channel_means(p, x, grid), p.log_scales, grid)


def _mixture_reference(
    bins: Tensor,
    params: Tensor,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: str = "centred",
    min_log_scale: float | None = -7.0,
    reduction: str = "image",
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    p = Planes.of(params, bins.shape[1], _is_coupled(coupled, bins.shape[1]))
    joint = _log_prob(_mixture_cells(bins, p, of)).sum(1)
    log_prob = (p.logits.log_softmax(1) + joint).logsumexp(1)
    if reduction == "image":
        return log_prob.sum(1)
    return log_prob.view(bins.shape[0], *bins.shape[2:]).contiguous()


def _mixture_backward_reference(
    grad: Tensor,
    bins: Tensor,
    params: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    """grad (n,) or (n, h, w)."""
    of = Grid.of(grid, n_bins, min_log_scale)
    p = Planes.of(params, bins.shape[1], _is_coupled(coupled, bins.shape[1]))
    cells = _mixture_cells(bins, p, of)
    share = (p.logits.log_softmax(1) + _log_prob(cells).sum(1)).softmax(1)
    by_mean, by_log_scale = _slopes(cells, p.log_scales, of)
    blocks = [by_mean, by_log_scale]
    if p.coefficients is not None:
        x = (2 * bins.flatten(2).int() - (n_bins - 1)).to(by_mean.dtype) / of.gamma
        target = torch.stack([by_mean[:, 1], by_mean[:, 2], by_mean[:, 2]], 1)
        source = torch.stack([x[:, 0], x[:, 0], x[:, 1]], 1)[:, :, None]
        blocks.append(target * source * (1 - p.coefficients.tanh().square()))
    rest = torch.stack(blocks, 2) * share[:, None, None]
    whole = torch.cat([share - p.logits.softmax(1), rest.flatten(1, 3)], 1)
    scaled = grad.flatten(1)[:, None] * whole if grad.dim() > 1 else grad[:, None, None] * whole
    return torch.empty_like(params).copy_(scaled.view(params.shape))


def _mixture_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape, k, coupled, n, grid, reduction in [
        ((2, 3, 1, 1), 1, None, 8, "centred", "image"),
        ((1, 3, 1, 2), 2, True, 16, "centred", "none"),
        ((2, 1, 1, 2), 2, None, 32, "unit", "none"),
        ((1, 3, 1, 2), 2, False, 32, "symmetric", "image"),
    ]:
        bins, params = _images(shape, k, coupled, n, grid, device, dtype, calm=True)
        yield bins, params, coupled, n, grid, -3.0, reduction
    for shape, k, coupled, n, grid, floor, reduction in [
        ((2, 3, 8, 9), 10, None, 256, "centred", -3.0, "image"),
        ((3, 3, 5, 7), 4, True, 256, "symmetric", -3.0, "none"),
        ((3, 1, 7, 13), 5, None, 2, "centred", -3.0, "image"),
        ((2, 2, 9, 5), 2, None, 65536, "unit", None, "image"),
        ((2, 18, 3, 6), 3, None, 256, "unit", -3.0, "none"),
        ((64, 1, 1, 40), 2, None, 256, "centred", -3.0, "image"),
        ((0, 3, 4, 4), 2, None, 256, "centred", -3.0, "image"),
    ]:
        bins, params = _images(shape, k, coupled, n, grid, device, dtype)
        yield bins, params, coupled, n, grid, floor, reduction
    bins, params = _images((2, 3, 8, 9), 3, None, 256, "centred", device, dtype)
    last = torch.channels_last
    bins, params = bins.to(memory_format=last), params.to(memory_format=last)
    yield bins, params, None, 256, "centred", -3.0, "none"
    yield bins[:, :, ::2], params[..., ::2, :], None, 256, "centred", -3.0, "image"


def _mixture_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for bins, params, *rest, reduction in _mixture_cases(device, dtype):
        n, _, h, w = bins.shape
        shape = (n,) if reduction == "image" else (n, h, w)
        yield _upstream(shape, device, dtype), bins, params, *rest


def _mixture_cpp(
    core: Any,
    bins: Tensor,
    params: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
    reduction: str,
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    n, c, h, w = bins.shape
    shape = (n,) if reduction == "image" else (n, h, w)
    out = torch.empty(shape, dtype=_widen(params[:0]).dtype)
    core.logistic_mixture_log_prob(
        bins.flatten(2), params.flatten(2), _is_coupled(coupled, c), *of, _pixels(out), threads()
    )
    return out


def _mixture_backward_cpp(
    core: Any,
    grad: Tensor,
    bins: Tensor,
    params: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    out = torch.empty_like(params)
    planes = out.flatten(2)
    core.logistic_mixture_backward(
        _pixels(grad.contiguous()),
        bins.flatten(2),
        params.flatten(2),
        _is_coupled(coupled, bins.shape[1]),
        *of,
        planes,
        threads(),
    )
    return out if planes.data_ptr() == out.data_ptr() else out.copy_(planes.view(out.shape))


_mixture_backward = register(
    "discretized_logistic_mixture_backward(Tensor grad, Tensor bins, Tensor params, "
    "bool? coupled, int n_bins, str grid, float? min_log_scale) -> Tensor",
    _mixture_backward_reference,
    cases=_mixture_backward_cases,
    gradient="true",
    dtypes=_check.FLOATING,
    cpp=_mixture_backward_cpp,
)


def _mixture_gradient(args: tuple, grads: tuple) -> tuple:
    *arguments, _ = args
    return None, _mixture_backward(grads[0], *arguments), None, None, None, None, None


_mixture = register(
    "discretized_logistic_mixture_log_prob(Tensor bins, Tensor params, bool? coupled, int n_bins, "
    "str grid, float? min_log_scale, str reduction) -> Tensor",
    _mixture_reference,
    cases=_mixture_cases,
    gradient="true",
    dtypes=_check.FLOATING,
    cpp=_mixture_cpp,
    backward=_mixture_gradient,
)


@_mixture.public
def discretized_logistic_mixture_log_prob(
    bins: Tensor,  # (n, c, h, w) uint8 or int32 in 0 ... n_bins - 1
    params: Tensor,  # (n, p, h, w)
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
    reduction: Literal["image", "none"] = "image",
) -> Tensor:  # nats: (n,) summed over each image, or (n, h, w)
    """log P(pixel) of a mixture of discretized logistics, with its closed gradient.

    The number of components follows from p = 10 K where channels are coupled, K (1 + 2 c)
    otherwise; this module's first lines give their order. `coupled` None means c = 3. Computed in
    float32, or float64 for float64; gradients take the dtype of the parameters. Contiguous and
    channels_last tensors are read as they are. Log-scales below `min_log_scale` count as that and
    get no gradient (at equality they do); None means -60. A NaN parameter gives NaN in its pixel
    only.

    Raises TypeError for bins that are not uint8 or int32 or params that are not floating,
    ValueError for shapes that do not fit, coupled channels that are not three or on grid "unit",
    n_bins outside 2 ... 65536, min_log_scale below -60 and, on CPU or under FASTLATENT_STRICT=1, a
    bin outside the grid.
    """
    op = "discretized_logistic_mixture_log_prob"
    _check.tensor(op, "bins", bins, 4, _BINS)
    _check_grid(op, n_bins, grid, min_log_scale)
    _check.choice(op, "reduction", reduction, REDUCTIONS)
    _check_params(op, params, bins.shape[1], coupled, grid)
    if bins.shape[0] != params.shape[0] or bins.shape[2:] != params.shape[2:]:
        raise ValueError(
            f"{op}: bins and params must agree in images and pixels; "
            f"got shapes {tuple(bins.shape)} and {tuple(params.shape)}"
        )
    _check_bins(op, bins, params, n_bins)
    return _mixture(bins, params, coupled, n_bins, grid, min_log_scale, reduction)


# Checks


def _check_grid(op: str, n_bins: int, grid: str, min_log_scale: float | None) -> None:
    _check.choice(op, "grid", grid, GRIDS)
    if not 2 <= n_bins <= 65536:
        raise ValueError(f"{op}: n_bins must be in 2 ... 65536; got {n_bins}")
    if min_log_scale is not None and not min_log_scale >= _UNCLAMPED:
        raise ValueError(f"{op}: min_log_scale must be at least -60; got {min_log_scale}")


def _check_params(
    op: str, params: Tensor, channels: int, coupled: bool | None, grid: str
) -> None:
    _check.tensor(op, "params", params, 4, _check.FLOATING)
    coupled = _is_coupled(coupled, channels)
    if coupled and channels != 3:
        raise ValueError(f"{op}: coupled channels must be three; got {channels}")
    if coupled and grid == "unit":
        raise ValueError(f"{op}: grid must be 'centred' or 'symmetric' where channels are coupled")
    each = 10 if coupled else 1 + 2 * channels
    if channels < 1 or params.shape[1] < each or params.shape[1] % each:
        kind = "coupled" if coupled else "uncoupled"
        raise ValueError(
            f"{op}: params must have a multiple of {each} planes for {channels} {kind} channels; "
            f"got {params.shape[1]}"
        )


def _check_bins(op: str, bins: Tensor, params: Tensor, n_bins: int) -> None:
    if bins.device != params.device:
        raise ValueError(
            f"{op}: bins must be on the device of the parameters, {params.device}; "
            f"got {bins.device}"
        )
    if bins.is_cuda and strict() and not bool(((bins >= 0) & (bins < n_bins)).all()):
        raise ValueError(f"{op}: bins must be in 0 to {n_bins - 1}")


# Views and cases


def _flat(x: Tensor) -> Tensor:
    return x.contiguous().view(-1)


def _pixels(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.view(x.shape[0], x.shape[1] * x.shape[2])


def _values(
    shape: tuple[int, ...],
    n: int,
    grid: str,
    device: str,
    dtype: torch.dtype,
    calm: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bins, means about the grid and log-scales on both sides of -3; calm: slopes of order 1."""
    make = torch.Generator().manual_seed(len(shape) + sum(shape) + n)
    bins = torch.randint(0, n, shape, generator=make, dtype=torch.int32)
    bins = torch.where(torch.rand(shape, generator=make) < 0.1, torch.zeros_like(bins), bins)
    bins = torch.where(torch.rand(shape, generator=make) < 0.1, n - 1, bins)
    middle = 0.5 if grid == "unit" else 0.0
    mean = middle + torch.randn(shape, generator=make, dtype=torch.float64) * 0.6
    log_scale = torch.randn(shape, generator=make, dtype=torch.float64)
    log_scale = log_scale * 0.3 - 0.5 if calm else log_scale * 1.5 - 2.5
    small = torch.uint8 if n <= 256 else torch.int32
    return bins.to(device, small), mean.to(device, dtype), log_scale.to(device, dtype)


def _images(
    shape: tuple[int, int, int, int],
    k: int,
    coupled: bool | None,
    n: int,
    grid: str,
    device: str,
    dtype: torch.dtype,
    calm: bool = False,
) -> tuple[Tensor, Tensor]:
    images, c, h, w = shape
    make = torch.Generator().manual_seed(sum(shape) + k)
    bins, *_ = _values(shape, n, grid, device, dtype, calm)
    _, means, log_scales = _values((images, c, k, h, w), n, grid, "cpu", torch.float64, calm)
    of = Grid.of(grid, n, None)
    centres = (2 * bins.cpu().double() - (n - 1) + of.shift) / of.gamma
    blocks = [(centres[:, :, None] + 0.2 * means).float().double(), log_scales]
    if _is_coupled(coupled, c):
        blocks.append(torch.randn(images, c, k, h, w, generator=make, dtype=torch.float64))
    logits = torch.randn(images, k, h, w, generator=make, dtype=torch.float64)
    params = torch.cat([logits, torch.stack(blocks, 2).flatten(1, 3)], 1)
    return bins, params.to(device, dtype)


def _upstream(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    make = torch.Generator().manual_seed(sum(shape) + 1)
    wide = torch.promote_types(dtype, torch.float32)
    return torch.randn(shape, generator=make, dtype=torch.float64).to(device, wide)
