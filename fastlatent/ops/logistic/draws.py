"""Samples of discretized logistics: functions of given uniforms."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import Kernel, register, threads
from fastlatent.ops.logistic.arguments import (
    check_broadcast,
    check_grid,
    check_mixture,
    check_values,
)
from fastlatent.ops.logistic.cases import images_and_parameters
from fastlatent.ops.logistic.cell import clamped, widen
from fastlatent.ops.logistic.grid import MIXTURE, Grid, is_coupled, on_grid
from fastlatent.ops.logistic.mixture import (
    Planes,
    coupled_mean,
)

KINDS = ("quantized", "continuous")
MOST_LOG_SCALE = 64.0  # beyond it the offset of a sample could overflow


class _Draw(NamedTuple):
    """A sample (n, c, s) in half-widths of a bin from the middle of the grid."""

    y: Tensor
    unrounded: Tensor
    choice: Tensor  # (n, K, s): cumulative weights minus the threshold


def _draw(params: Tensor, uniforms: Tensor, grid: Grid, quantized: bool) -> _Draw:
    p = Planes.of(params, uniforms.shape[1] - 1, grid)
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
    # From far smaller scales on a sample is at an end, or at the mean itself.
    scales = grid.gamma * clamped(chosen(p.log_scales), grid).clamp_max(MOST_LOG_SCALE).exp()
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


def _quantized_bins(params: Tensor, uniforms: Tensor, grid: Grid) -> Tensor:
    y = _draw(params, uniforms, grid, True).y
    bins = ((y + (grid.n - 1)) / 2).nan_to_num(0).to(grid.bin_dtype)
    return bins.unflatten(2, params.shape[2:]).contiguous()


def _continuous_values(params: Tensor, uniforms: Tensor, grid: Grid) -> Tensor:
    y = _draw(params, uniforms, grid, False).y
    values = (y + grid.shift) / grid.gamma
    return values.unflatten(2, params.shape[2:]).contiguous()


@on_grid
def _decided(params: Tensor, uniforms: Tensor, grid: Grid) -> Tensor:
    """Where neither the component nor any bin up to this channel hangs on rounding."""
    draw = _draw(params.double(), uniforms.double(), grid, True)
    eps = torch.finfo(widen(params[:0]).dtype).eps
    sure = (draw.choice.abs() > 64 * eps * draw.choice.abs().amax(1, keepdim=True)).all(1)
    to_edge = (draw.unrounded + grid.n) / 2
    far = (to_edge - to_edge.round()).abs() > 6 * eps * (grid.n + 1)
    mask = sure[:, None] & far.cummin(1).values
    return mask.unflatten(2, params.shape[2:])


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape, k, coupled, n, grid in [
        ((1, 3, 1, 2), 2, True, 16, "centred"),
        ((2, 3, 2, 3), 1, True, 256, "centred"),
        ((2, 3, 9, 8), 10, True, 256, "centred"),
        ((2, 3, 5, 7), 3, False, 256, "symmetric"),
        ((16, 1, 1, 40), 5, False, 256, "centred"),
        ((2, 2, 9, 5), 2, False, 65536, "unit"),
        ((0, 1, 3, 3), 2, False, 256, "centred"),
    ]:
        _, params = images_and_parameters(shape, k, coupled, n, grid, device, dtype)
        yield params, _uniforms(shape, device, params.dtype), coupled, n, grid, -7.0
    _, params = images_and_parameters((2, 3, 4, 5), 3, True, 256, "centred", device, dtype)
    uniforms = _uniforms((2, 3, 4, 5), device, params.dtype)
    last = params.to(memory_format=torch.channels_last)
    yield last, uniforms.to(memory_format=torch.channels_last), True, 256, "centred", -7.0


def _uniforms(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    n, c, h, w = shape
    make = torch.Generator().manual_seed(sum(shape))
    u = torch.rand((n, 1 + c, h, w), generator=make, dtype=torch.float64)
    return u.to(device, torch.promote_types(dtype, torch.float32))


def _cpp_writing(quantized: bool) -> Kernel:
    @on_grid
    def cpp(core: Any, params: Tensor, uniforms: Tensor, grid: Grid) -> Tensor:
        n, c, h, w = uniforms.shape
        out = torch.empty((n, c - 1, h, w), dtype=grid.bin_dtype if quantized else uniforms.dtype)
        planes = params.flatten(2), uniforms.flatten(2)
        core.logistic_mixture_sample(*planes, grid, out.flatten(2), threads())
        return out

    return cpp


_SIGNATURE = f"(Tensor params, Tensor uniforms, {MIXTURE}) -> Tensor"

_quantized = register(
    f"discretized_logistic_mixture_bins{_SIGNATURE}",
    on_grid(_quantized_bins),
    cases=_cases,
    gradient="none",
    decided=_decided,
    cpp=_cpp_writing(quantized=True),
    triton="logistic_triton",
)

_continuous = register(
    f"discretized_logistic_mixture_values{_SIGNATURE}",
    on_grid(_continuous_values),
    cases=_cases,
    gradient="none",
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
    of = check_grid(op, n_bins, grid, min_log_scale)
    _, of = check_mixture(op, params, uniforms.shape[1] - 1, coupled, of)
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
    return _sample(params, uniforms, kind, of)


def _sample(params: Tensor, uniforms: Tensor, kind: str, grid: Grid) -> Tensor:
    draw = _quantized if kind == "quantized" else _continuous
    return draw(params, uniforms, *grid.scalars)


def _sample_reference(
    params: Tensor,
    uniforms: Tensor,
    kind: Literal["quantized", "continuous"] = "quantized",
    coupled: bool | None = None,
    n_bins: int = 256,
    grid: Literal["centred", "symmetric", "unit"] = "centred",
    min_log_scale: float | None = -7.0,
) -> Tensor:
    draw = _quantized_bins if kind == "quantized" else _continuous_values
    pairs = is_coupled(coupled, uniforms.shape[1] - 1)
    return draw(params, uniforms, Grid.of(n_bins, grid, min_log_scale, pairs))


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
    of = check_grid(op, n_bins, grid, min_log_scale)
    check_values(op, mean=mean, log_scale=log_scale)
    check_values(op, uniforms=uniforms)
    _check.alike(op, mean=widen(mean[:0]), uniforms=uniforms)
    check_broadcast(op, mean=mean, log_scale=log_scale, uniforms=uniforms)
    shape = torch.broadcast_shapes(mean.shape, log_scale.shape, uniforms.shape)
    flat = [x.expand(shape).reshape(1, 1, 1, -1) for x in (mean, log_scale, uniforms)]
    params = torch.cat([torch.zeros_like(flat[0]), flat[0], flat[1]], 1)
    drivers = torch.cat([torch.zeros_like(flat[2]), flat[2]], 1)
    return _sample(params, drivers, kind, replace(of, coupled=False)).view(shape)
