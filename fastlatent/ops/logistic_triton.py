"""Triton kernels of likelihoods and samples of discretized logistics, single and mixed.

`fastlatent.ops.logistic` is the definition, `logistic_planes_triton` what the kernels are made of.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.elementary_triton import exp, log1p, run_on_elements, tanh
from fastlatent.ops.logistic.grid import Grid, on_grid
from fastlatent.ops.logistic_planes_triton import (
    PER_PROGRAM,
    block_of,
    blocks_of,
    clamped,
    component_sums,
    confined,
    free_cell,
    joint,
    log_prob_of,
    mean_plane,
    plane,
    put_back,
    run_on_pixels,
    store_plane,
    tied_cell,
    top_logit,
    upcast,
)


@triton.jit
def single_kernel(
    bins,
    mean,
    log_scale,
    out,
    count,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    k = tl.load(bins + at, inside, other=0).to(tl.int32)
    m = confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE)
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    decay, weight, near, far, narrow, missing, _, _ = free_cell(k, m, ls, GRID, WIDE)
    tl.store(out + at, log_prob_of(decay, weight, near * far, narrow, missing), inside)


@triton.jit
def single_backward_kernel(
    grad,
    bins,
    mean,
    log_scale,
    mean_grad,
    log_scale_grad,
    count,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    k = tl.load(bins + at, inside, other=0).to(tl.int32)
    m = confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE)
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    g = tl.load(grad + at, inside, other=0)
    _, _, _, _, _, _, by_mean, by_scale = free_cell(k, m, ls, GRID, WIDE)
    tl.store(mean_grad + at, g * by_mean, inside)
    tl.store(log_scale_grad + at, g * by_scale, inside)


@triton.jit
def mixture_kernel(
    bins,  # (n, C, pixels)
    parameters,  # (n, p, pixels)
    out,  # (n, pixels), or (n, blocks) sums where SUM
    pixels,
    K,
    bins_image,
    bins_plane,
    bins_pixel,
    parameters_image,
    parameters_plane,
    parameters_pixel,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = block_of(pixels, BLOCK)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    _, most, total, z = component_sums(
        bins + image * bins_image + pixel * bins_pixel,
        parameters + image * parameters_image + pixel * parameters_pixel,
        bins_plane, parameters_plane, inside, K, C, GRID,
        WIDE,
    )  # fmt: skip
    value = most + (tl.log(total) - tl.log(z))
    if SUM:
        sums = tl.sum(tl.where(inside, value, 0.0), 0)
        tl.store(out + image * tl.cdiv(pixels, BLOCK) + block, sums)
    else:
        tl.store(out + image * pixels + pixel, value, inside)


@triton.jit
def mixture_backward_kernel(
    grad,  # (n,) or (n, pixels)
    bins,
    parameters,
    out,  # like parameters
    pixels,
    K,
    grad_image,
    grad_pixel,
    bins_image,
    bins_plane,
    bins_pixel,
    parameters_image,
    parameters_plane,
    parameters_pixel,
    out_image,
    out_plane,
    out_pixel,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = block_of(pixels, BLOCK)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    bins += image * bins_image + pixel * bins_pixel
    parameters += image * parameters_image + pixel * parameters_pixel
    out += image * out_image + pixel * out_pixel
    top, most, total, z = component_sums(
        bins, parameters, bins_plane, parameters_plane, inside, K, C, GRID, WIDE,
    )  # fmt: skip
    g = tl.load(grad + image * grad_image + pixel * grad_pixel, inside, other=0)
    for i in range(K):
        exponent, weight = joint(
            i, bins, parameters, bins_plane, parameters_plane, inside, K, C, GRID, WIDE,
        )  # fmt: skip
        logit = plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE) - top
        share = g * (weight * tl.exp(exponent + logit - most) / total)
        store_plane(out, tl.cast(i, tl.int32), out_plane, share - g * (tl.exp(logit) / z), inside)
        if GRID.coupled:
            red = tl.load(bins, inside, other=0).to(tl.int32)
            green = tl.load(bins + bins_plane, inside, other=0).to(tl.int32)
            blue = tl.load(bins + 2 * bins_plane, inside, other=0).to(tl.int32)
            x0 = (2 * red - (GRID.n - 1)).to(WIDE)
            x1 = (2 * green - (GRID.n - 1)).to(WIDE)
            t0, slope0 = tanh(plane(parameters, 3 * K + i, parameters_plane, inside, WIDE), WIDE)
            t1, slope1 = tanh(plane(parameters, 6 * K + i, parameters_plane, inside, WIDE), WIDE)
            t2, slope2 = tanh(plane(parameters, 9 * K + i, parameters_plane, inside, WIDE), WIDE)
            m0 = mean_plane(parameters, K + i, parameters_plane, inside, WIDE)
            m1 = mean_plane(parameters, 4 * K + i, parameters_plane, inside, WIDE) * GRID.gamma
            m2 = mean_plane(parameters, 7 * K + i, parameters_plane, inside, WIDE) * GRID.gamma
            s0 = plane(parameters, 2 * K + i, parameters_plane, inside, WIDE)
            s1 = plane(parameters, 5 * K + i, parameters_plane, inside, WIDE)
            s2 = plane(parameters, 8 * K + i, parameters_plane, inside, WIDE)
            _, _, _, _, _, _, by_m0, by_s0 = free_cell(red, m0, s0, GRID, WIDE)
            _, _, _, _, _, _, by_m1, by_s1 = tied_cell(green, tl.fma(t0, x0, m1), s1, GRID, WIDE)
            _, _, _, _, _, _, by_m2, by_s2 = tied_cell(
                blue, tl.fma(t2, x1, tl.fma(t1, x0, m2)), s2, GRID, WIDE
            )
            store_plane(out, K + i, out_plane, share * by_m0, inside)
            store_plane(out, 2 * K + i, out_plane, share * by_s0, inside)
            store_plane(out, 4 * K + i, out_plane, share * by_m1, inside)
            store_plane(out, 5 * K + i, out_plane, share * by_s1, inside)
            store_plane(out, 7 * K + i, out_plane, share * by_m2, inside)
            store_plane(out, 8 * K + i, out_plane, share * by_s2, inside)
            x0, x1 = x0 / GRID.gamma, x1 / GRID.gamma
            store_plane(out, 3 * K + i, out_plane, share * by_m1 * x0 * slope0, inside)
            store_plane(out, 6 * K + i, out_plane, share * by_m2 * x0 * slope1, inside)
            store_plane(out, 9 * K + i, out_plane, share * by_m2 * x1 * slope2, inside)
        else:
            for c in range(C):
                k = tl.load(bins + c * bins_plane, inside, other=0).to(tl.int32)
                m = mean_plane(parameters, K + 2 * K * c + i, parameters_plane, inside, WIDE)
                ls = plane(parameters, 2 * K + 2 * K * c + i, parameters_plane, inside, WIDE)
                _, _, _, _, _, _, by_mean, by_scale = free_cell(k, m, ls, GRID, WIDE)
                store_plane(out, K + 2 * K * c + i, out_plane, share * by_mean, inside)
                store_plane(out, 2 * K + 2 * K * c + i, out_plane, share * by_scale, inside)


@triton.jit
def sample_kernel(
    parameters,
    uniforms,  # (n, 1 + C, pixels)
    out,  # (n, C, pixels) contiguous
    pixels,
    K,
    parameters_image,
    parameters_plane,
    parameters_pixel,
    uniforms_image,
    uniforms_plane,
    uniforms_pixel,
    C: tl.constexpr,
    QUANTIZED: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = block_of(pixels, BLOCK)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    parameters += image * parameters_image + pixel * parameters_pixel
    uniforms += image * uniforms_image + pixel * uniforms_pixel
    out += image * C * pixels + pixel
    top = top_logit(parameters, parameters_plane, inside, K, WIDE)
    z = tl.zeros((BLOCK,), WIDE)
    for i in range(K):
        z += exp(
            plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE) - top, WIDE
        )
    threshold = tl.load(uniforms, inside, other=0) * z
    total = tl.zeros((BLOCK,), WIDE)
    component = tl.zeros((BLOCK,), tl.int32)
    for i in range(K - 1):
        logit = plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE)
        total += exp(logit - top, WIDE)
        component += tl.where(total > threshold, 0, 1)

    each: tl.constexpr = 3 if GRID.coupled else 2
    first = tl.zeros((BLOCK,), WIDE)
    second = tl.zeros((BLOCK,), WIDE)
    for c in tl.static_range(C):
        at = K + each * K * c + component
        mean = mean_plane(parameters, at, parameters_plane, inside, WIDE)
        log_scale = plane(parameters, at + K, parameters_plane, inside, WIDE)
        y = mean * GRID.gamma - GRID.shift
        if GRID.coupled and c == 1:
            t0, _ = tanh(plane(parameters, 3 * K + component, parameters_plane, inside, WIDE), WIDE)
            y = tl.fma(t0, first, y)
        if GRID.coupled and c == 2:
            t1, _ = tanh(plane(parameters, 6 * K + component, parameters_plane, inside, WIDE), WIDE)
            t2, _ = tanh(plane(parameters, 9 * K + component, parameters_plane, inside, WIDE), WIDE)
            y = tl.fma(t2, second, tl.fma(t1, first, y))
        u = tl.load(uniforms + (1 + c) * uniforms_plane, inside, other=0.5)
        u = tl.where(u < 2.0**-25, 2.0**-25, tl.where(u > 1 - 2.0**-24, 1 - 2.0**-24, u))
        logit = tl.log(u) - log1p(-u)
        lam = clamped(log_scale, GRID)
        y += GRID.gamma * exp(tl.where(lam > 64, 64.0, lam), WIDE) * logit
        y = tl.where(y < 1 - GRID.n, 1.0 - GRID.n, tl.where(y > GRID.n - 1, GRID.n - 1.0, y))
        y = tl.where(threshold == threshold, y, threshold)
        if QUANTIZED:
            k = tl.floor((y + GRID.n) * 0.5)
            k = tl.where(k > GRID.n - 1, GRID.n - 1.0, k)
            y = 2 * k - (GRID.n - 1)
            tl.store(out + c * pixels, tl.where(k == k, k, 0.0).to(tl.int32), inside)
        else:
            tl.store(out + c * pixels, (y + GRID.shift) / GRID.gamma, inside)
        if c == 0:
            first = y
        if c == 1:
            second = y


@on_grid
def discretized_logistic_log_prob(
    bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> Tensor:
    out = torch.empty(bins.shape, dtype=upcast(mean.dtype), device=mean.device)
    run_on_elements(single_kernel, (bins, mean, log_scale), (out,), PER_PROGRAM, GRID=grid)
    return out


@on_grid
def discretized_logistic_backward(
    grad: Tensor, bins: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    by_mean, by_log_scale = torch.empty((2, *mean.shape), dtype=mean.dtype, device=mean.device)
    inputs = grad, bins, mean, log_scale
    run_on_elements(single_backward_kernel, inputs, (by_mean, by_log_scale), PER_PROGRAM, GRID=grid)
    return by_mean, by_log_scale


@on_grid
def discretized_logistic_mixture_log_prob(
    bins: Tensor, params: Tensor, grid: Grid, reduction: str
) -> Tensor:
    n, c, h, w = bins.shape
    values, planes, total = bins.flatten(2), params.detach().flatten(2), reduction == "image"
    shape = (n, blocks_of(h * w)) if total else (n, h, w)
    out = torch.empty(shape, dtype=upcast(params.dtype), device=params.device)
    both = values, planes
    run_on_pixels(mixture_kernel, (*both, out), both, planes, c, grid, SUM=total)
    return out.sum(1, dtype=torch.float64).to(out.dtype) if total else out


@on_grid
def discretized_logistic_mixture_backward(
    grad: Tensor, bins: Tensor, params: Tensor, grid: Grid
) -> Tensor:
    n, c, h, w = bins.shape
    upstream, planes = grad.detach(), params.detach().flatten(2)
    upstream = upstream[:, None].expand(n, h * w) if grad.dim() == 1 else upstream.flatten(1)
    out = torch.empty_like(params)
    result = out.flatten(2)
    tensors = upstream, bins.flatten(2), planes, result
    run_on_pixels(mixture_backward_kernel, tensors, tensors, planes, c, grid)
    return put_back(result, out)


@on_grid
def discretized_logistic_mixture_bins(params: Tensor, uniforms: Tensor, grid: Grid) -> Tensor:
    return _sample(params, uniforms, grid, grid.bin_dtype, QUANTIZED=True)


@on_grid
def discretized_logistic_mixture_values(params: Tensor, uniforms: Tensor, grid: Grid) -> Tensor:
    return _sample(params, uniforms, grid, uniforms.dtype, QUANTIZED=False)


def _sample(
    params: Tensor, uniforms: Tensor, grid: Grid, dtype: torch.dtype, **quantized: bool
) -> Tensor:
    n, c, h, w = uniforms.shape
    both = params.detach().flatten(2), uniforms.flatten(2)
    out = torch.empty((n, c - 1, h, w), dtype=dtype, device=params.device)
    run_on_pixels(sample_kernel, (*both, out), both, both[0], c - 1, grid, **quantized)
    return out
