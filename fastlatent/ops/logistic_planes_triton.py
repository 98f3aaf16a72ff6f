"""What the Triton kernels of discretized logistics share; `fastlatent.ops.logistic` defines it.

Cells, planes of parameters, and sums over the components of a mixture. One program takes a block of
pixels of one image. Lengths count half-widths of a bin; `GRID` is a Grid, constant in the compiled
code.
"""

# mypy: allow-untyped-defs

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.elementary_triton import (
    OPTIONS,
    exp,
    log1p,
    mean_decay,
    one_minus_decay,
    tanh,
    wide,
)
from fastlatent.ops.logistic.grid import Grid
from fastlatent.ops.logistic.mixture import components

PER_PROGRAM = 128  # elements or pixels


@triton.jit
def clamped(log_scale, GRID: tl.constexpr):
    return tl.where(log_scale < GRID.floor, GRID.floor, log_scale)


@triton.jit
def confined(mean, WIDE: tl.constexpr):
    """NaN beyond the domain, infinities among it."""
    most: tl.constexpr = 2.0**900 if tl.float64 == WIDE else 2.0**80
    return tl.where(tl.abs(mean) <= most, mean, float("nan"))


@triton.jit
def cell(
    lower,
    centre,
    upper,
    low,
    high,
    log_scale,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """P = weight e^-decay / (near far); what is missing of P; derivatives of log P."""
    lam = clamped(log_scale, GRID)
    inverse_scale = exp(-lam, WIDE)
    h = inverse_scale / GRID.gamma
    inner = (low == 0) & (high == 0)
    right = ((centre >= 0) & (low == 0)) | (high != 0)
    delta = 2 * h
    alpha = tl.where(right, lower, -upper) * h
    beta = tl.where(right, upper, -lower) * h
    z2 = 2 * (tl.abs(centre) * h)
    e_alpha = tl.exp(-tl.abs(alpha))
    e_delta = tl.exp(-delta)
    e_z2 = tl.exp(-z2)
    e_beta = tl.where(inner, e_alpha * tl.where(z2 >= delta, e_delta, e_z2), 0.0)
    spread = tl.where(inner, one_minus_decay(z2, e_z2, WIDE), 1.0)
    near, far = 1 + e_alpha, 1 + e_beta
    narrow = inner & (delta <= 1)
    narrow_weight = mean_decay(tl.where(delta <= 1, delta, 1.0), WIDE)
    wide_weight = one_minus_decay(delta, e_delta, WIDE)
    weight = tl.where(inner, tl.where(narrow, narrow_weight, wide_weight), 1.0)
    decay = tl.where(alpha > 0, alpha, 0.0) - tl.where(narrow, GRID.log_width - lam, 0.0)

    sigma = tl.where(alpha >= 0, 1.0, e_alpha) / near
    by_mean = tl.where(right, 1.0, -1.0) * (sigma * spread / far) * inverse_scale
    # Infinite edges times a power of 0 are 0.
    loss = (
        tl.where(beta > 1e4, 1e4, beta) * (e_beta / far)
        + tl.where(narrow, e_delta, delta * e_delta) / weight
    )
    by_scale = tl.where(alpha < -1e4, -1e4, alpha) * sigma - tl.where(inner, loss, 0.0)
    by_scale = tl.where(log_scale < GRID.floor, 0.0, by_scale)
    missing = tl.where(inner, e_delta, 0.0) + e_alpha + e_beta + e_alpha * e_beta
    return decay, weight, near, far, narrow, missing, by_mean, by_scale


@triton.jit
def free_cell(
    k,
    mean,
    log_scale,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The cell of a channel whose mean stands alone."""
    x = (2 * k - (GRID.n - 1) + GRID.shift).to(WIDE)
    slope = tl.full(mean.shape, -GRID.gamma, WIDE)
    lower = tl.fma(slope, mean, x - 1)
    centre = tl.fma(slope, mean, x)
    upper = tl.fma(slope, mean, x + 1)
    low, high = (k == 0).to(tl.int32), (k == GRID.n - 1).to(tl.int32)
    return cell(lower, centre, upper, low, high, log_scale, GRID, WIDE)


@triton.jit
def tied_cell(
    k,
    centre_of_mean,
    log_scale,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The cell of a channel whose mean moves with the channels before."""
    x = (2 * k - (GRID.n - 1)).to(WIDE)
    low, high = (k == 0).to(tl.int32), (k == GRID.n - 1).to(tl.int32)
    lower, centre = (x - 1) - centre_of_mean, x - centre_of_mean
    upper = (x + 1) - centre_of_mean
    return cell(lower, centre, upper, low, high, log_scale, GRID, WIDE)


@triton.jit
def log_prob_of(decay, weight, edges, narrow, missing):
    """Relative accuracy down to log P = -0: log1p where P is near 1."""
    share = weight / edges
    likely = (share >= 0.5) & (narrow == 0)
    return tl.where(likely, log1p(-missing / edges), tl.log(share)) - decay


@triton.jit
def plane(parameters, index, stride, inside, WIDE: tl.constexpr):
    return tl.load(parameters + index.to(tl.int64) * stride, inside, other=0).to(WIDE)


@triton.jit
def mean_plane(parameters, index, stride, inside, WIDE: tl.constexpr):
    return confined(plane(parameters, index, stride, inside, WIDE), WIDE)


@triton.jit
def block_of(pixels, BLOCK: tl.constexpr):
    """The image and the block of its pixels; one axis, since CUDA's others end at 65,535."""
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), (program % blocks).to(tl.int64)


@triton.jit
def top_logit(parameters, plane_stride, inside, K, WIDE: tl.constexpr):
    top = tl.load(parameters, inside, other=0).to(WIDE)
    for i in range(1, K):
        top = tl.maximum(top, plane(parameters, tl.cast(i, tl.int32), plane_stride, inside, WIDE))
    return top


@triton.jit
def joint(
    i,
    bins,  # of the block's pixels, first channel
    parameters,  # of the block's pixels, first plane
    bins_plane,
    parameters_plane,
    inside,
    K,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Component i's probability of all channels, weight e^exponent, without its logit."""
    if GRID.coupled:
        red = tl.load(bins, inside, other=0).to(tl.int32)
        green = tl.load(bins + bins_plane, inside, other=0).to(tl.int32)
        blue = tl.load(bins + 2 * bins_plane, inside, other=0).to(tl.int32)
        x0 = (2 * red - (GRID.n - 1)).to(WIDE)
        x1 = (2 * green - (GRID.n - 1)).to(WIDE)
        t0, _ = tanh(plane(parameters, 3 * K + i, parameters_plane, inside, WIDE), WIDE)
        t1, _ = tanh(plane(parameters, 6 * K + i, parameters_plane, inside, WIDE), WIDE)
        t2, _ = tanh(plane(parameters, 9 * K + i, parameters_plane, inside, WIDE), WIDE)
        m0 = mean_plane(parameters, K + i, parameters_plane, inside, WIDE)
        m1 = mean_plane(parameters, 4 * K + i, parameters_plane, inside, WIDE) * GRID.gamma
        m2 = mean_plane(parameters, 7 * K + i, parameters_plane, inside, WIDE) * GRID.gamma
        s0 = plane(parameters, 2 * K + i, parameters_plane, inside, WIDE)
        s1 = plane(parameters, 5 * K + i, parameters_plane, inside, WIDE)
        s2 = plane(parameters, 8 * K + i, parameters_plane, inside, WIDE)
        d0, w0, n0, f0, _, _, _, _ = free_cell(red, m0, s0, GRID, WIDE)
        d1, w1, n1, f1, _, _, _, _ = tied_cell(green, tl.fma(t0, x0, m1), s1, GRID, WIDE)
        d2, w2, n2, f2, _, _, _, _ = tied_cell(
            blue, tl.fma(t2, x1, tl.fma(t1, x0, m2)), s2, GRID, WIDE
        )
        return -(d0 + d1 + d2), (w0 * w1 * w2) / ((n0 * f0) * (n1 * f1) * (n2 * f2))
    exponent = tl.zeros(inside.shape, WIDE)
    weight = exponent + 1
    for c in range(C):
        k = tl.load(bins + c * bins_plane, inside, other=0).to(tl.int32)
        m = mean_plane(parameters, K + 2 * K * c + i, parameters_plane, inside, WIDE)
        ls = plane(parameters, 2 * K + 2 * K * c + i, parameters_plane, inside, WIDE)
        decay, w, near, far, _, _, _, _ = free_cell(k, m, ls, GRID, WIDE)
        exponent -= decay
        weight *= w / (near * far)
        if C > 16:  # a long product could leave the range
            exponent += tl.log(weight)
            weight = tl.zeros(inside.shape, WIDE) + 1
    return exponent, weight


@triton.jit
def component_sums(
    bins,
    parameters,
    bins_plane,
    parameters_plane,
    inside,
    K,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Largest logit and exponent, and the sums over the components around them."""
    top = top_logit(parameters, parameters_plane, inside, K, WIDE)
    # Not infinity, from which -infinity can't be taken.
    least: tl.constexpr = -1.7976931348623157e308 if tl.float64 == WIDE else -3.4028234663852886e38
    most = tl.full(inside.shape, least, WIDE)
    total = tl.zeros(inside.shape, WIDE)
    z = tl.zeros(inside.shape, WIDE)
    for i in range(K):
        exponent, weight = joint(
            i, bins, parameters, bins_plane, parameters_plane, inside, K, C, GRID, WIDE,
        )  # fmt: skip
        logit = plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE) - top
        exponent += logit
        highest = tl.maximum(most, exponent)
        total = total * tl.exp(most - highest) + weight * tl.exp(exponent - highest)
        most = highest
        z += tl.exp(logit)
    return top, most, total, z


@triton.jit
def store_plane(to, index, stride, value, inside):
    tl.store(to + index.to(tl.int64) * stride, value, inside)


def constants_of(grid: Grid, dtype: torch.dtype) -> dict[str, Any]:
    """What every kernel of the family is compiled for."""
    return {"GRID": grid, "WIDE": wide(dtype), "BLOCK": PER_PROGRAM}


def blocks_of(pixels: int) -> int:
    return triton.cdiv(pixels, PER_PROGRAM)


def run_on_pixels(
    kernel: Any,
    tensors: Sequence[Tensor],
    strided: Sequence[Tensor],  # those whose strides the kernel takes
    params: Tensor,  # (n, p, pixels)
    channels: int,
    grid: Grid,
    **constants: Any,
) -> None:
    """Runs a kernel on all pixels of all images."""
    n, planes, pixels = params.shape
    if params.numel():
        with torch.cuda.device_of(params):
            kernel[(n * blocks_of(pixels),)](
                *tensors,
                pixels,
                components(planes, channels, grid),
                *(stride for tensor in strided for stride in tensor.stride()),
                C=channels,
                **constants_of(grid, params.dtype),
                **constants,
                **OPTIONS,
            )


def put_back(planes: Tensor, out: Tensor) -> Tensor:
    """`out`, whose planes (n, p, pixels) were computed, in its memory or beside it."""
    return out if planes.data_ptr() == out.data_ptr() else out.copy_(planes.view(out.shape))


def upcast(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
