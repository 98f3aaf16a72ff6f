"""Triton kernels of means and modes of discretized logistics; `fastlatent.ops.logistic` defines.

One program takes a block of elements, or of pixels of one image.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.elementary_triton import (
    exp,
    log1p,
    one_minus_decay,
    run_on_elements,
    tanh,
)
from fastlatent.ops.logistic.grid import Grid, on_grid
from fastlatent.ops.logistic.mixture import components
from fastlatent.ops.logistic_planes_triton import (
    PER_PROGRAM,
    block_of,
    clamped,
    component_sums,
    confined,
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
def _clipped(
    mean,
    log_scale,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """E[clip(Y, 1 - n, n - 1)] and its derivatives; the mean in half-widths."""
    last: tl.constexpr = GRID.n - 1
    inverse = exp(-clamped(log_scale, GRID), WIDE) / GRID.gamma
    inverse = tl.where(inverse < 1e-32, 1e-32, inverse)  # beyond, the expectation is 0
    scale = 1 / inverse
    sign = tl.where(mean < 0, -1.0, 1.0).to(WIDE)
    t = sign * mean
    beyond = t > last
    held = tl.where(beyond, last + 0.0, t)
    gap = tl.abs(last - t) * inverse
    width = 2 * held * inverse
    near, decay = tl.exp(-gap), tl.exp(-width)
    far = near * decay
    excess = near * one_minus_decay(width, decay, WIDE)
    loss = log1p(excess / (1 + far))
    edges = (1 + near) * (1 + far)
    whole = 2 * last * inverse
    by_mean = tl.where(beyond, near, 1.0) / edges * one_minus_decay(whole, tl.exp(-whole), WIDE)
    slope = width * (far / (1 + far)) - loss - gap * (excess / edges)
    by_log_scale = tl.where(log_scale < GRID.floor, 0.0, sign * scale * slope)
    return sign * (held - scale * loss), by_mean, by_log_scale


@triton.jit
def _likeliest(
    mean,
    log_scale,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The bin that holds the mean, or the open one on its side; the mean in half-widths."""
    inner = _holding(mean, GRID)
    inner = tl.where(inner < 1, 1, inner)
    inner = tl.where(inner > GRID.n - 2, GRID.n - 2, inner)
    end = tl.where(mean > 0, GRID.n - 1, 0)
    at_end = _log_prob(end, mean, log_scale, GRID, WIDE)
    inside = _log_prob(inner, mean, log_scale, GRID, WIDE)
    return tl.where(at_end > inside, end, inner)


@triton.jit
def _holding(mean, GRID: tl.constexpr):
    place = (mean + GRID.n) * 0.5
    place = tl.where(place < 0, 0.0, tl.where(place > GRID.n - 1, GRID.n - 1.0, place))
    return tl.where(place == place, tl.floor(place), 0.0).to(tl.int32)


@triton.jit
def _log_prob(
    k,
    mean,
    log_scale,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    decay, weight, near, far, narrow, missing, _, _ = tied_cell(k, mean, log_scale, GRID, WIDE)
    return log_prob_of(decay, weight, near * far, narrow, missing)


@triton.jit
def mean_kernel(
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
    centre = confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE) * GRID.gamma - GRID.shift
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    value, _, _ = _clipped(centre, ls, GRID, WIDE)
    tl.store(out + at, (value + GRID.shift) / GRID.gamma, inside)


@triton.jit
def mean_backward_kernel(
    grad,
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
    centre = confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE) * GRID.gamma - GRID.shift
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    g = tl.load(grad + at, inside, other=0)
    _, by_mean, by_scale = _clipped(centre, ls, GRID, WIDE)
    tl.store(mean_grad + at, g * by_mean, inside)
    tl.store(log_scale_grad + at, g * (by_scale / GRID.gamma), inside)


@triton.jit
def mode_kernel(
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
    centre = confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE) * GRID.gamma - GRID.shift
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    k = _likeliest(centre, ls, GRID, WIDE)
    tl.store(out + at, tl.where(centre + ls == centre + ls, k, 0), inside)


@triton.jit
def _clipped_colours(
    i,
    parameters,  # of the block's pixels, first plane
    parameters_plane,
    inside,
    K,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Values and derivatives of the coupled channels of component i, and tanh with its slope."""
    t0, slope0 = tanh(plane(parameters, 3 * K + i, parameters_plane, inside, WIDE), WIDE)
    t1, slope1 = tanh(plane(parameters, 6 * K + i, parameters_plane, inside, WIDE), WIDE)
    t2, slope2 = tanh(plane(parameters, 9 * K + i, parameters_plane, inside, WIDE), WIDE)
    m0 = mean_plane(parameters, K + i, parameters_plane, inside, WIDE) * GRID.gamma
    m1 = mean_plane(parameters, 4 * K + i, parameters_plane, inside, WIDE) * GRID.gamma
    m2 = mean_plane(parameters, 7 * K + i, parameters_plane, inside, WIDE) * GRID.gamma
    s0 = plane(parameters, 2 * K + i, parameters_plane, inside, WIDE)
    s1 = plane(parameters, 5 * K + i, parameters_plane, inside, WIDE)
    s2 = plane(parameters, 8 * K + i, parameters_plane, inside, WIDE)
    y0, by_m0, by_s0 = _clipped(m0, s0, GRID, WIDE)
    y1, by_m1, by_s1 = _clipped(tl.fma(t0, y0, m1), s1, GRID, WIDE)
    blue = tl.fma(t2, y1, tl.fma(t1, y0, m2))
    y2, by_m2, by_s2 = _clipped(blue, s2, GRID, WIDE)
    return (
        y0, y1, y2, by_m0, by_m1, by_m2, by_s0, by_s1, by_s2, t0, t1, t2, slope0, slope1, slope2,
    )  # fmt: skip


@triton.jit
def _prior_sum(parameters, parameters_plane, inside, K, top, WIDE: tl.constexpr):
    z = tl.zeros(inside.shape, WIDE)
    for i in range(K):
        z += exp(
            plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE) - top, WIDE
        )
    return z


@triton.jit
def mixture_mean_kernel(
    parameters,  # (n, p, pixels)
    out,  # (n, C, pixels) contiguous
    pixels,
    K,
    parameters_image,
    parameters_plane,
    parameters_pixel,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    parameters += image * parameters_image + pixel * parameters_pixel
    out += image * C * pixels + pixel
    top = top_logit(parameters, parameters_plane, inside, K, WIDE)
    z = _prior_sum(parameters, parameters_plane, inside, K, top, WIDE)
    if GRID.coupled:
        red = tl.zeros((BLOCK,), WIDE)
        green = tl.zeros((BLOCK,), WIDE)
        blue = tl.zeros((BLOCK,), WIDE)
        for i in range(K):
            logit = plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE)
            prior = exp(logit - top, WIDE)
            y0, y1, y2, _, _, _, _, _, _, _, _, _, _, _, _ = _clipped_colours(
                i, parameters, parameters_plane, inside, K, GRID, WIDE
            )
            red += prior * y0
            green += prior * y1
            blue += prior * y2
        tl.store(out, red / z / GRID.gamma, inside)
        tl.store(out + pixels, green / z / GRID.gamma, inside)
        tl.store(out + 2 * pixels, blue / z / GRID.gamma, inside)
    else:
        for c in range(C):
            total = tl.zeros((BLOCK,), WIDE)
            for i in range(K):
                logit = plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE)
                centre = mean_plane(parameters, K + 2 * K * c + i, parameters_plane, inside, WIDE)
                ls = plane(parameters, 2 * K + 2 * K * c + i, parameters_plane, inside, WIDE)
                y, _, _ = _clipped(centre * GRID.gamma - GRID.shift, ls, GRID, WIDE)
                total += exp(logit - top, WIDE) * y
            tl.store(out + c * pixels, (total / z + GRID.shift) / GRID.gamma, inside)


@triton.jit
def mixture_mean_backward_kernel(
    grad,  # (n, C, pixels)
    parameters,
    out,  # like parameters
    pixels,
    K,
    grad_image,
    grad_plane,
    grad_pixel,
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
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    grad += image * grad_image + pixel * grad_pixel
    grad_plane = tl.cast(grad_plane, tl.int64)
    parameters += image * parameters_image + pixel * parameters_pixel
    out += image * out_image + pixel * out_pixel
    top = top_logit(parameters, parameters_plane, inside, K, WIDE)
    z = _prior_sum(parameters, parameters_plane, inside, K, top, WIDE)
    # A logit gets pi (q - sum_j pi_j q_j), where q = sum_c g_c y_c: q is computed twice, not kept.
    middle = tl.zeros((BLOCK,), WIDE)
    for step in range(2 * K):
        i = step % K
        last = step >= K
        share = exp(
            plane(parameters, tl.cast(i, tl.int32), parameters_plane, inside, WIDE) - top, WIDE
        )
        share /= z
        q = tl.zeros((BLOCK,), WIDE)
        if GRID.coupled:
            g0 = tl.load(grad, inside, other=0) / GRID.gamma
            g1 = tl.load(grad + grad_plane, inside, other=0) / GRID.gamma
            g2 = tl.load(grad + 2 * grad_plane, inside, other=0) / GRID.gamma
            y0, y1, y2, by_m0, by_m1, by_m2, by_s0, by_s1, by_s2, t0, t1, t2, sl0, sl1, sl2 = (
                _clipped_colours(i, parameters, parameters_plane, inside, K, GRID, WIDE)
            )
            q += g0 * y0 + g1 * y1 + g2 * y2
            if last:
                v2 = share * g2
                c2 = v2 * by_m2
                v1 = share * g1 + c2 * t2
                c1 = v1 * by_m1
                v0 = share * g0 + c2 * t1 + c1 * t0
                store_plane(out, K + i, out_plane, v0 * by_m0 * GRID.gamma, inside)
                store_plane(out, 4 * K + i, out_plane, c1 * GRID.gamma, inside)
                store_plane(out, 7 * K + i, out_plane, c2 * GRID.gamma, inside)
                store_plane(out, 2 * K + i, out_plane, v0 * by_s0, inside)
                store_plane(out, 5 * K + i, out_plane, v1 * by_s1, inside)
                store_plane(out, 8 * K + i, out_plane, v2 * by_s2, inside)
                store_plane(out, 3 * K + i, out_plane, c1 * y0 * sl0, inside)
                store_plane(out, 6 * K + i, out_plane, c2 * y0 * sl1, inside)
                store_plane(out, 9 * K + i, out_plane, c2 * y1 * sl2, inside)
        else:
            for c in range(C):
                g = tl.load(grad + c * grad_plane, inside, other=0) / GRID.gamma
                centre = mean_plane(parameters, K + 2 * K * c + i, parameters_plane, inside, WIDE)
                ls = plane(parameters, 2 * K + 2 * K * c + i, parameters_plane, inside, WIDE)
                y, by_mean, by_scale = _clipped(centre * GRID.gamma - GRID.shift, ls, GRID, WIDE)
                q += g * y
                if last:
                    at = K + 2 * K * c + i
                    store_plane(out, at, out_plane, share * g * by_mean * GRID.gamma, inside)
                    store_plane(out, at + K, out_plane, share * g * by_scale, inside)
        if last:
            store_plane(out, tl.cast(i, tl.int32), out_plane, share * (q - middle), inside)
        else:
            middle += share * q


@triton.jit
def candidates_kernel(
    parameters,  # (n, p, pixels)
    out,  # (n, J, C, pixels) contiguous, J = K, or K + 2 with one channel
    pixels,
    K,
    parameters_image,
    parameters_plane,
    parameters_pixel,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each component's mode, channel by channel; with one channel its mean's bin, and the ends."""
    image, block = block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    parameters += image * parameters_image + pixel * parameters_pixel
    count = K + 2 if C == 1 else K
    out += image * count * C * pixels + pixel
    each: tl.constexpr = 3 if GRID.coupled else 2
    for i in range(K):
        x0 = tl.zeros((BLOCK,), WIDE)
        x1 = tl.zeros((BLOCK,), WIDE)
        for c in tl.static_range(C):
            at = K + each * K * c + i
            centre = (
                mean_plane(parameters, at, parameters_plane, inside, WIDE) * GRID.gamma - GRID.shift
            )
            ls = plane(parameters, at + K, parameters_plane, inside, WIDE)
            if GRID.coupled and c == 1:
                t0, _ = tanh(plane(parameters, 3 * K + i, parameters_plane, inside, WIDE), WIDE)
                centre = tl.fma(t0, x0, centre)
            if GRID.coupled and c == 2:
                t1, _ = tanh(plane(parameters, 6 * K + i, parameters_plane, inside, WIDE), WIDE)
                t2, _ = tanh(plane(parameters, 9 * K + i, parameters_plane, inside, WIDE), WIDE)
                centre = tl.fma(t2, x1, tl.fma(t1, x0, centre))
            k = _holding(centre, GRID) if C == 1 else _likeliest(centre, ls, GRID, WIDE)
            tl.store(out + tl.cast(i * C + c, tl.int64) * pixels, k, inside)
            if c == 0:
                x0 = (2 * k - (GRID.n - 1)).to(WIDE)
            if c == 1:
                x1 = (2 * k - (GRID.n - 1)).to(WIDE)
    if C == 1:
        ends = tl.zeros((BLOCK,), tl.int32)
        tl.store(out + tl.cast(K, tl.int64) * pixels, ends, inside)
        tl.store(out + tl.cast(K + 1, tl.int64) * pixels, ends + (GRID.n - 1), inside)


@triton.jit
def choose_kernel(
    candidates,  # (n, J, C, pixels) contiguous
    parameters,  # (n, p, pixels)
    out,  # (n, C, pixels) contiguous
    pixels,
    K,
    parameters_image,
    parameters_plane,
    parameters_pixel,
    C: tl.constexpr,
    GRID: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The likeliest candidate, the first of equals; bin 0 where a parameter or a score is NaN."""
    image, block = block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    parameters += image * parameters_image + pixel * parameters_pixel
    count = K + 2 if C == 1 else K
    candidates += image * count * C * pixels + pixel
    out += image * C * pixels + pixel
    best = tl.full((BLOCK,), -float("inf"), WIDE)
    chosen = tl.zeros((BLOCK,), tl.int32)
    known = tl.zeros((BLOCK,), WIDE)
    each: tl.constexpr = 10 if GRID.coupled else 1 + 2 * C
    for p in range(K * each):
        parameter = plane(parameters, tl.cast(p, tl.int32), parameters_plane, inside, WIDE)
        known = tl.where(parameter == parameter, known, parameter)
    for j in range(count):
        bins = candidates + tl.cast(j * C, tl.int64) * pixels
        top, most, total, _ = component_sums(
            bins, parameters, pixels, parameters_plane, inside, K, C, GRID, WIDE,
        )  # fmt: skip
        score = most + tl.log(total)
        known = tl.where(score == score, known, score)
        known = tl.where(top - top == 0, known, float("nan"))  # no probabilities
        chosen = tl.where(score > best, j, chosen)
        best = tl.where(score > best, score, best)
    for c in range(C):
        k = tl.load(candidates + (chosen * C + c).to(tl.int64) * pixels, inside, other=0)
        tl.store(out + c * pixels, tl.where(known == known, k.to(tl.int32), 0), inside)


@on_grid
def discretized_logistic_mean(mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    out = torch.empty(mean.shape, dtype=upcast(mean.dtype), device=mean.device)
    run_on_elements(mean_kernel, (mean, log_scale), (out,), PER_PROGRAM, GRID=grid)
    return out


@on_grid
def discretized_logistic_mean_backward(
    grad: Tensor, mean: Tensor, log_scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    by_mean, by_log_scale = torch.empty((2, *mean.shape), dtype=mean.dtype, device=mean.device)
    inputs = grad, mean, log_scale
    run_on_elements(mean_backward_kernel, inputs, (by_mean, by_log_scale), PER_PROGRAM, GRID=grid)
    return by_mean, by_log_scale


@on_grid
def discretized_logistic_mode(mean: Tensor, log_scale: Tensor, grid: Grid) -> Tensor:
    out = torch.empty(mean.shape, dtype=grid.bin_dtype, device=mean.device)
    run_on_elements(mode_kernel, (mean, log_scale), (out,), PER_PROGRAM, GRID=grid)
    return out


@on_grid
def discretized_logistic_mixture_mean(params: Tensor, channels: int, grid: Grid) -> Tensor:
    n, _, h, w = params.shape
    planes = params.detach().flatten(2)
    out = torch.empty((n, channels, h, w), dtype=upcast(params.dtype), device=params.device)
    run_on_pixels(mixture_mean_kernel, (planes, out), (planes,), planes, channels, grid)
    return out


@on_grid
def discretized_logistic_mixture_mean_backward(grad: Tensor, params: Tensor, grid: Grid) -> Tensor:
    planes = params.detach().flatten(2)
    out = torch.empty_like(params)
    result = out.flatten(2)
    tensors = grad.detach().flatten(2), planes, result
    run_on_pixels(mixture_mean_backward_kernel, tensors, tensors, planes, grad.shape[1], grid)
    return put_back(result, out)


@on_grid
def discretized_logistic_mixture_mode(params: Tensor, channels: int, grid: Grid) -> Tensor:
    n, _, h, w = params.shape
    planes = params.detach().flatten(2)
    count = components(params.shape[1], channels, grid) + (2 if channels == 1 else 0)
    out = torch.empty((n, channels, h, w), dtype=grid.bin_dtype, device=params.device)
    candidates = out.new_empty((n, count, channels, h, w))
    rest = (planes,), planes, channels, grid
    run_on_pixels(candidates_kernel, (planes, candidates), *rest)
    run_on_pixels(choose_kernel, (candidates, planes, out), *rest)
    return out
