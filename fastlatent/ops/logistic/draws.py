"""Samples, mean and mode of discretized logistics; samples are functions of given uniforms."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import Kernel, register, threads
from fastlatent.ops.logistic.arguments import (
    check_broadcast,
    check_grid,
    check_params,
    check_values,
    is_coupled,
)
from fastlatent.ops.logistic.cell import Grid, clamped, widen
from fastlatent.ops.logistic.mixture import (
    Planes,
    coupled_mean,
    discretized_logistic_mixture_log_prob,
    images_and_parameters,
)
from fastlatent.ops.logistic.single import discretized_logistic_log_prob

KINDS = ("quantized", "continuous")


class _Draw(NamedTuple):
    """A sample (n, c, s) in half-widths of a bin from the middle of the grid."""

    y: Tensor
    unrounded: Tensor
    choice: Tensor  # (n, K, s): cumulative weights minus the threshold


def _draw(params: Tensor, uniforms: Tensor, coupled: bool, grid: Grid, quantized: bool) -> _Draw:
    p = Planes.of(params, uniforms.shape[1] - 1, coupled)
    u = uniforms.flatten(2)
    weights = (p.logits - p.logits.amax(1, keepdim=True)).exp()
    cumulative = weights.cumsum(1)
    threshold = u[:, 0] * cumulative[:, -1]
    choice = cumulative - threshold[:, None]
    component = (choice[:, :-1] <= 0).sum(1, keepdim=True)

    def chosen(planes: Tensor) -> Tensor:  # (n, c, K, s) -> (n, c, s)
        index = component[:, None].expand(-1, planes.shape[1], -1, -1)
        return planes.gather(2, index).squeeze(2)

    means = grid.gamma * chosen(p.means) - grid.shift
    scales = grid.gamma * clamped(chosen(p.log_scales), grid).exp()
    inside = u[:, 1:].clamp(2.0**-25, 1 - 2.0**-24)
    offsets = scales * (inside.log() - torch.log1p(-inside))
    tau = None if p.coefficients is None else chosen(p.coefficients).tanh()
    last = grid.n - 1
    drawn: list[Tensor] = []
    unrounded = []
    for c in range(means.shape[1]):
        centre = coupled_mean(means[:, c], c, tau, drawn)
        y = (centre + offsets[:, c]).clamp(-last, last)
        y = torch.where(threshold.isnan(), threshold, y)
        unrounded.append(y)
        if quantized:
            y = 2 * ((y + grid.n) / 2).floor().clamp(0, last) - last
        drawn.append(y)
    return _Draw(torch.stack(drawn, 1), torch.stack(unrounded, 1), choice)


def _bin_dtype(n_bins: int) -> torch.dtype:
    return torch.uint8 if n_bins <= 256 else torch.int32


def _quantized_reference(
    params: Tensor,
    uniforms: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    y = _draw(params, uniforms, is_coupled(coupled, uniforms.shape[1] - 1), of, True).y
    bins = ((y + (n_bins - 1)) / 2).nan_to_num(0).to(_bin_dtype(n_bins))
    return bins.unflatten(2, params.shape[2:]).contiguous()


def _continuous_reference(
    params: Tensor,
    uniforms: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    of = Grid.of(grid, n_bins, min_log_scale)
    y = _draw(params, uniforms, is_coupled(coupled, uniforms.shape[1] - 1), of, False).y
    values = (y + of.shift) / of.gamma
    return values.unflatten(2, params.shape[2:]).contiguous()


def _decided(
    params: Tensor,
    uniforms: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    """Where neither the component nor any bin up to this channel hangs on rounding."""
    of = Grid.of(grid, n_bins, min_log_scale)
    pairs = is_coupled(coupled, uniforms.shape[1] - 1)
    draw = _draw(params.double(), uniforms.double(), pairs, of, True)
    eps = torch.finfo(widen(params[:0]).dtype).eps
    sure = (draw.choice.abs() > 64 * eps * draw.choice.abs().amax(1, keepdim=True)).all(1)
    to_edge = (draw.unrounded + n_bins) / 2
    far = (to_edge - to_edge.round()).abs() > 6 * eps * (n_bins + 1)
    mask = sure[:, None] & far.cummin(1).values
    return mask.unflatten(2, params.shape[2:])


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape, k, coupled, n, grid in [
        ((1, 3, 1, 2), 2, None, 16, "centred"),
        ((2, 3, 2, 3), 1, None, 256, "centred"),
        ((2, 3, 9, 8), 10, None, 256, "centred"),
        ((2, 3, 5, 7), 3, False, 256, "symmetric"),
        ((16, 1, 1, 40), 5, None, 256, "centred"),
        ((2, 2, 9, 5), 2, None, 65536, "unit"),
        ((0, 1, 3, 3), 2, None, 256, "centred"),
    ]:
        _, params = images_and_parameters(shape, k, coupled, n, grid, device, dtype)
        yield params, _uniforms(shape, device, params.dtype), coupled, n, grid, -7.0
    _, params = images_and_parameters((2, 3, 4, 5), 3, None, 256, "centred", device, dtype)
    uniforms = _uniforms((2, 3, 4, 5), device, params.dtype)
    last = params.to(memory_format=torch.channels_last)
    yield last, uniforms.to(memory_format=torch.channels_last), None, 256, "centred", -7.0


def _uniforms(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    n, c, h, w = shape
    make = torch.Generator().manual_seed(sum(shape))
    u = torch.rand((n, 1 + c, h, w), generator=make, dtype=torch.float64)
    return u.to(device, torch.promote_types(dtype, torch.float32))


def _cpp_writing(quantized: bool) -> Kernel:
    def cpp(
        core: Any,
        params: Tensor,
        uniforms: Tensor,
        coupled: bool | None,
        n_bins: int,
        grid: str,
        min_log_scale: float | None,
    ) -> Tensor:
        of = Grid.of(grid, n_bins, min_log_scale)
        n, c, h, w = uniforms.shape
        out = torch.empty(
            (n, c - 1, h, w), dtype=_bin_dtype(n_bins) if quantized else uniforms.dtype
        )
        pairs = is_coupled(coupled, c - 1)
        planes = params.flatten(2), uniforms.flatten(2)
        core.logistic_mixture_sample(*planes, pairs, *of, out.flatten(2), threads())
        return out

    return cpp


_SIGNATURE = (
    "(Tensor params, Tensor uniforms, bool? coupled, int n_bins, str grid, "
    "float? min_log_scale) -> Tensor"
)

_quantized = register(
    f"discretized_logistic_mixture_bins{_SIGNATURE}",
    _quantized_reference,
    cases=_cases,
    gradient="none",
    discrete=(True,),
    decided=_decided,
    dtypes=_check.FLOATING,
    cpp=_cpp_writing(quantized=True),
    triton="logistic_triton",
)

_continuous = register(
    f"discretized_logistic_mixture_values{_SIGNATURE}",
    _continuous_reference,
    cases=_cases,
    gradient="none",
    dtypes=_check.FLOATING,
    cpp=_cpp_writing(quantized=False),
    triton="logistic_triton",
)


def discretized_logistic_mixture_sample(
    params: Tensor,  # (n, p, h, w)
    uniforms: Tensor,  # (n, 1 + c, h, w) in [0, 1), float32 or params' precision if higher
    kind: Literal["quantized", "continuous"] = "quantized",
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (n, c, h, w): uint8 (int32 beyond 256 bins), or floats on the grid's scale
    """Sample by the first uniform's component and the other uniforms' quantiles; no gradient.

    "quantized" draws bins exactly from the distribution of
    `discretized_logistic_mixture_log_prob`: later channels see the bin centres of earlier ones.
    "continuous" is PixelCNN++'s: values before rounding, clipped to the outer centres, which later
    channels see unrounded. Layout and the other arguments as there.

    A NaN logit or first uniform gives NaN in its pixel; a NaN of the drawn component or of another
    uniform in its channel and those coupled to it. Components that are not drawn are not read, and
    where "continuous" gives NaN "quantized" gives bin 0.

    Raises TypeError and ValueError as there, and for uniforms of another dtype, device or shape.
    """
    op = "discretized_logistic_mixture_sample"
    _check.choice(op, "kind", kind, KINDS)
    _check.tensor(op, "uniforms", uniforms, 4, (torch.float32, torch.float64))
    check_grid(op, n_bins, grid, min_log_scale)
    check_params(op, params, uniforms.shape[1] - 1, coupled, grid)
    if uniforms.dtype != widen(params[:0]).dtype or uniforms.device != params.device:
        raise TypeError(
            f"{op}: uniforms must be {widen(params[:0]).dtype} on {params.device}; "
            f"got {uniforms.dtype} on {uniforms.device}"
        )
    if uniforms.shape[0] != params.shape[0] or uniforms.shape[2:] != params.shape[2:]:
        raise ValueError(
            f"{op}: uniforms and params must agree in images and pixels; "
            f"got shapes {tuple(uniforms.shape)} and {tuple(params.shape)}"
        )
    draw = _quantized if kind == "quantized" else _continuous
    return draw(params, uniforms, coupled, n_bins, grid, min_log_scale)


def _sample_reference(
    params: Tensor,
    uniforms: Tensor,
    kind: Literal["quantized", "continuous"] = "quantized",
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    draw = _quantized_reference if kind == "quantized" else _continuous_reference
    return draw(params, uniforms, coupled, n_bins, grid, min_log_scale)


discretized_logistic_mixture_sample.reference = _sample_reference  # type: ignore[attr-defined]


def discretized_logistic_sample(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    uniforms: Tensor,  # (...) in [0, 1)
    kind: Literal["quantized", "continuous"] = "quantized",
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...): uint8 (int32 beyond 256 bins), or floats on the grid's scale
    """Sample by the quantiles of one logistic for each value; see the mixture's sampler.

    Raises TypeError and ValueError as there, and for shapes that don't broadcast.
    """
    op = "discretized_logistic_sample"
    _check.choice(op, "kind", kind, KINDS)
    check_grid(op, n_bins, grid, min_log_scale)
    check_values(op, mean=mean, log_scale=log_scale)
    check_values(op, uniforms=uniforms)
    _check.alike(op, mean=widen(mean[:0]), uniforms=uniforms)
    check_broadcast(op, mean=mean, log_scale=log_scale, uniforms=uniforms)
    shape = torch.broadcast_shapes(mean.shape, log_scale.shape, uniforms.shape)
    flat = [x.expand(shape).reshape(1, 1, 1, -1) for x in (mean, log_scale, uniforms)]
    params = torch.cat([torch.zeros_like(flat[0]), flat[0], flat[1]], 1)
    drivers = torch.cat([torch.zeros_like(flat[2]), flat[2]], 1)
    return discretized_logistic_mixture_sample(
        params, drivers, kind, False, n_bins, grid, min_log_scale
    ).view(shape)


def discretized_logistic_mean(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) on the grid's scale
    """E[clip(Y, first centre, last centre)] of the logistic Y, differentiable.

    The mean of "continuous" samples, within half a bin of that of "quantized" ones. Plain PyTorch,
    computed in float32 or float64.

    Raises TypeError for parameters that are not floating tensors of one dtype, ValueError for
    shapes that don't broadcast, devices that differ, an unknown grid, n_bins outside 2 ... 65536
    and min_log_scale below -60.
    """
    check_grid("discretized_logistic_mean", n_bins, grid, min_log_scale)
    check_values("discretized_logistic_mean", mean=mean, log_scale=log_scale)
    of = Grid.of(grid, n_bins, min_log_scale)
    middle = _clipped_mean(of.gamma * widen(mean) - of.shift, widen(log_scale), of)
    return (middle + of.shift) / of.gamma


def _clipped_mean(mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    """In half-widths: last - s log((1 + e^((last - m) / s)) / (1 + e^((-last - m) / s)))."""
    last = grid.n - 1
    floored = clamped(log_scale, grid)
    scale = grid.gamma * floored.exp()
    # Not divided by the scale: the derivative of that overflows.
    inverse = (-floored).exp() / grid.gamma
    upper, lower, span = (last - mean) * inverse, (-last - mean) * inverse, 2 * last * inverse
    # One logarithm where the span is short: the difference of two would cancel.
    short = torch.log1p(lower.sigmoid() * torch.expm1(span.clamp_max(1)))
    softplus = torch.nn.functional.softplus
    long = softplus(upper, threshold=50) - softplus(lower, threshold=50)
    beyond = span - (softplus(-lower, threshold=50) - softplus(-upper, threshold=50))
    long = torch.where(lower > 0, beyond, long)
    return last - scale * torch.where(span < 1, short, long)


def discretized_logistic_mixture_mean(
    params: Tensor,  # (n, p, h, w)
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (n, c, h, w) on the grid's scale
    """Mean image: components' clipped means, weighted; coupled channels see the means before.

    Exact for "continuous" samples without coupling and for the first channel; otherwise a plug-in.
    Differentiable, in plain PyTorch.

    Raises TypeError for params that are not floating, ValueError for a number of planes that does
    not fit, coupled channels that are not three or on grid "unit", an unknown grid, n_bins outside
    2 ... 65536 and min_log_scale below -60.
    """
    op = "discretized_logistic_mixture_mean"
    check_grid(op, n_bins, grid, min_log_scale)
    check_params(op, params, channels, coupled, grid)
    of = Grid.of(grid, n_bins, min_log_scale)
    p = Planes.of(params, channels, is_coupled(coupled, channels))
    middles = of.gamma * p.means - of.shift
    tau = None if p.coefficients is None else p.coefficients.tanh()
    found: list[Tensor] = []
    for c in range(channels):
        middle = coupled_mean(middles[:, c], c, tau, found)
        found.append(_clipped_mean(middle, p.log_scales[:, c], of))
    weighted = (torch.stack(found, 1) * p.logits.softmax(1)[:, None]).sum(2)
    return ((weighted + of.shift) / of.gamma).unflatten(2, params.shape[2:])


def _likeliest(mean: Tensor, log_scale: Tensor, grid: Grid, options: tuple) -> Tensor:
    """The likeliest bin of one logistic, `mean` in half-widths: the mean's, the first or last."""
    inner = ((mean + grid.n) / 2).floor().clamp(min(1, grid.n - 1), max(grid.n - 2, 0))
    ends = torch.zeros_like(inner), torch.full_like(inner, grid.n - 1)
    candidates = torch.stack([inner.nan_to_num(0), *ends]).int()
    on_grid = (mean + grid.shift) / grid.gamma
    each = [x.expand_as(candidates) for x in (on_grid, log_scale)]
    score = discretized_logistic_log_prob(candidates, *each, *options)
    return candidates.gather(0, score.argmax(0, keepdim=True)).squeeze(0)


@torch.no_grad()
def discretized_logistic_mode(
    mean: Tensor,  # (...)
    log_scale: Tensor,  # (...)
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "unit",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (...) uint8 (int32 beyond 256 bins)
    """The likeliest bin of each value: the one that holds the mean, or an open one.

    Plain PyTorch around `discretized_logistic_log_prob`; no gradient.

    Raises as `discretized_logistic_mean`.
    """
    check_grid("discretized_logistic_mode", n_bins, grid, min_log_scale)
    check_values("discretized_logistic_mode", mean=mean, log_scale=log_scale)
    of = Grid.of(grid, n_bins, min_log_scale)
    middle = of.gamma * widen(mean) - of.shift
    options = (n_bins, grid, min_log_scale)
    return _likeliest(middle, widen(log_scale), of, options).to(_bin_dtype(n_bins))


@torch.no_grad()
def discretized_logistic_mixture_mode(
    params: Tensor,  # (n, p, h, w)
    channels: int = 3,
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:  # (n, c, h, w) uint8 (int32 beyond 256 bins)
    """The likeliest among the components' modes, under the whole mixture; ties to the first.

    A component's mode goes channel by channel, later channels seeing the bins before; for one
    channel the first and the last bin are tried too. Not always the mixture's own mode: with one
    channel, 10 components and log-scales of -5 to -2 it is in 19 of 20 pixels. Costs about K
    log-probabilities. Plain PyTorch around `discretized_logistic_mixture_log_prob`; no gradient.

    Raises as `discretized_logistic_mixture_mean`.
    """
    op = "discretized_logistic_mixture_mode"
    check_grid(op, n_bins, grid, min_log_scale)
    check_params(op, params, channels, coupled, grid)
    of = Grid.of(grid, n_bins, min_log_scale)
    pairs = is_coupled(coupled, channels)
    p = Planes.of(params, channels, pairs)
    options = (n_bins, grid, min_log_scale)
    middles = of.gamma * p.means - of.shift
    tau = None if p.coefficients is None else p.coefficients.tanh()
    found: list[Tensor] = []  # (n, K, s) each
    for c in range(channels):
        values = [2 * bins - (n_bins - 1) for bins in found]
        middle = coupled_mean(middles[:, c], c, tau, values)
        found.append(_likeliest(middle, p.log_scales[:, c], of, options))
    candidates = torch.stack(found, 1)  # (n, c, K, s)
    if channels == 1:
        holding = ((middles + n_bins) / 2).floor().clamp(0, n_bins - 1).nan_to_num(0).int()
        ends = torch.zeros_like(holding[:, :, :1]), torch.full_like(holding[:, :, :1], n_bins - 1)
        candidates = torch.cat([holding, *ends], 2)

    best = torch.full_like(p.logits[:, 0], -torch.inf)
    mode = torch.zeros_like(candidates[:, :, 0])
    for i in range(candidates.shape[2]):
        bins = candidates[:, :, i].unflatten(2, params.shape[2:])
        score = discretized_logistic_mixture_log_prob(
            bins, params, pairs, *options, reduction="none"
        ).flatten(1)
        mode = torch.where((score > best)[:, None], candidates[:, :, i], mode)
        best = torch.maximum(score, best)
    return mode.unflatten(2, params.shape[2:]).to(_bin_dtype(n_bins))
