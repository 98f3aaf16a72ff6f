"""Triton kernels of means and modes of discretized logistics; `fastlatent.ops.logistic` defines.

One program takes a block of elements, or of pixels of one image. Lengths count half-widths of a
bin; the grid is constant in the compiled code.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.logistic.arguments import is_coupled
from fastlatent.ops.logistic.cell import Grid, bin_dtype
from fastlatent.ops.logistic.mixture import components
from fastlatent.ops.logistic_triton import (
    _BLOCK,
    _OPTIONS,
    _POINTERS,
    _block_of,
    _clamped,
    _confined,
    _constants,
    _exp,
    _grid_constants,
    _log1p,
    _log_prob_of,
    _mean_plane,
    _one_minus_decay,
    _plane,
    _store_plane,
    _strides,
    _sums,
    _tanh,
    _tied_cell,
    _top,
    _wide,
)


@triton.jit
def _clipped(
    mean,
    log_scale,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """E[clip(Y, 1 - BINS, BINS - 1)] and its derivatives; the mean in half-widths."""
    last: tl.constexpr = BINS - 1
    inverse = _exp(-_clamped(log_scale, FLOOR), WIDE) / GAMMA
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
    excess = near * _one_minus_decay(width, decay, WIDE)
    loss = _log1p(excess / (1 + far))
    edges = (1 + near) * (1 + far)
    whole = 2 * last * inverse
    by_mean = tl.where(beyond, near, 1.0) / edges * _one_minus_decay(whole, tl.exp(-whole), WIDE)
    slope = width * (far / (1 + far)) - loss - gap * (excess / edges)
    by_log_scale = tl.where(log_scale < FLOOR, 0.0, sign * scale * slope)
    return sign * (held - scale * loss), by_mean, by_log_scale


@triton.jit
def _likeliest(
    mean,
    log_scale,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The bin that holds the mean, or the open one on its side; the mean in half-widths."""
    inner = _holding(mean, BINS)
    inner = tl.where(inner < 1, 1, inner)
    inner = tl.where(inner > BINS - 2, BINS - 2, inner)
    end = tl.where(mean > 0, BINS - 1, 0)
    at_end = _log_prob(end, mean, log_scale, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE)
    inside = _log_prob(inner, mean, log_scale, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE)
    return tl.where(at_end > inside, end, inner)


@triton.jit
def _holding(mean, BINS: tl.constexpr):
    place = (mean + BINS) * 0.5
    place = tl.where(place < 0, 0.0, tl.where(place > BINS - 1, BINS - 1.0, place))
    return tl.where(place == place, tl.floor(place), 0.0).to(tl.int32)


@triton.jit
def _log_prob(
    k,
    mean,
    log_scale,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    decay, weight, near, far, narrow, missing, _, _ = _tied_cell(
        k, mean, log_scale, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE
    )
    return _log_prob_of(decay, weight, near * far, narrow, missing)


@triton.jit
def mean_kernel(
    mean,
    log_scale,
    out,
    count,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    centre = _confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE) * GAMMA - SHIFT
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    value, _, _ = _clipped(centre, ls, BINS, GAMMA, FLOOR, WIDE)
    tl.store(out + at, (value + SHIFT) / GAMMA, inside)


@triton.jit
def mean_backward_kernel(
    grad,
    mean,
    log_scale,
    mean_grad,
    log_scale_grad,
    count,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    centre = _confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE) * GAMMA - SHIFT
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    g = tl.load(grad + at, inside, other=0)
    _, by_mean, by_scale = _clipped(centre, ls, BINS, GAMMA, FLOOR, WIDE)
    tl.store(mean_grad + at, g * by_mean, inside)
    tl.store(log_scale_grad + at, g * (by_scale / GAMMA), inside)


@triton.jit
def mode_kernel(
    mean,
    log_scale,
    out,
    count,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    centre = _confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE) * GAMMA - SHIFT
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    k = _likeliest(centre, ls, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE)
    tl.store(out + at, tl.where(centre + ls == centre + ls, k, 0), inside)


@triton.jit
def _clipped_colours(
    i,
    params,  # of the block's pixels, first plane
    params_plane,
    inside,
    K,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of the coupled channels of component i: values, derivatives, and tanh with its slope."""
    t0, slope0 = _tanh(_plane(params, 3 * K + i, params_plane, inside, WIDE), WIDE)
    t1, slope1 = _tanh(_plane(params, 6 * K + i, params_plane, inside, WIDE), WIDE)
    t2, slope2 = _tanh(_plane(params, 9 * K + i, params_plane, inside, WIDE), WIDE)
    m0 = _mean_plane(params, K + i, params_plane, inside, WIDE) * GAMMA
    m1 = _mean_plane(params, 4 * K + i, params_plane, inside, WIDE) * GAMMA
    m2 = _mean_plane(params, 7 * K + i, params_plane, inside, WIDE) * GAMMA
    s0 = _plane(params, 2 * K + i, params_plane, inside, WIDE)
    s1 = _plane(params, 5 * K + i, params_plane, inside, WIDE)
    s2 = _plane(params, 8 * K + i, params_plane, inside, WIDE)
    y0, by_m0, by_s0 = _clipped(m0, s0, BINS, GAMMA, FLOOR, WIDE)
    y1, by_m1, by_s1 = _clipped(tl.fma(t0, y0, m1), s1, BINS, GAMMA, FLOOR, WIDE)
    blue = tl.fma(t2, y1, tl.fma(t1, y0, m2))
    y2, by_m2, by_s2 = _clipped(blue, s2, BINS, GAMMA, FLOOR, WIDE)
    return (
        y0, y1, y2, by_m0, by_m1, by_m2, by_s0, by_s1, by_s2, t0, t1, t2, slope0, slope1, slope2,
    )  # fmt: skip


@triton.jit
def _prior_sum(params, params_plane, inside, K, top, WIDE: tl.constexpr):
    z = tl.zeros(inside.shape, WIDE)
    for i in range(K):
        z += _exp(_plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE) - top, WIDE)
    return z


@triton.jit
def mixture_mean_kernel(
    params,  # (n, p, pixels)
    out,  # (n, C, pixels) contiguous
    pixels,
    K,
    params_image,
    params_plane,
    params_pixel,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = _block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    params += image * params_image + pixel * params_pixel
    out += image * C * pixels + pixel
    top = _top(params, params_plane, inside, K, WIDE)
    z = _prior_sum(params, params_plane, inside, K, top, WIDE)
    if COUPLED:
        red = tl.zeros((BLOCK,), WIDE)
        green = tl.zeros((BLOCK,), WIDE)
        blue = tl.zeros((BLOCK,), WIDE)
        for i in range(K):
            logit = _plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE)
            prior = _exp(logit - top, WIDE)
            y0, y1, y2, _, _, _, _, _, _, _, _, _, _, _, _ = _clipped_colours(
                i, params, params_plane, inside, K, BINS, GAMMA, FLOOR, WIDE
            )
            red += prior * y0
            green += prior * y1
            blue += prior * y2
        tl.store(out, red / z / GAMMA, inside)
        tl.store(out + pixels, green / z / GAMMA, inside)
        tl.store(out + 2 * pixels, blue / z / GAMMA, inside)
    else:
        for c in range(C):
            total = tl.zeros((BLOCK,), WIDE)
            for i in range(K):
                logit = _plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE)
                centre = _mean_plane(params, K + 2 * K * c + i, params_plane, inside, WIDE)
                ls = _plane(params, 2 * K + 2 * K * c + i, params_plane, inside, WIDE)
                y, _, _ = _clipped(centre * GAMMA - SHIFT, ls, BINS, GAMMA, FLOOR, WIDE)
                total += _exp(logit - top, WIDE) * y
            tl.store(out + c * pixels, (total / z + SHIFT) / GAMMA, inside)


@triton.jit
def mixture_mean_backward_kernel(
    grad,  # (n, C, pixels)
    params,
    out,  # like params
    pixels,
    K,
    grad_image,
    grad_plane,
    grad_pixel,
    params_image,
    params_plane,
    params_pixel,
    out_image,
    out_plane,
    out_pixel,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = _block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    grad += image * grad_image + pixel * grad_pixel
    grad_plane = tl.cast(grad_plane, tl.int64)
    params += image * params_image + pixel * params_pixel
    out += image * out_image + pixel * out_pixel
    top = _top(params, params_plane, inside, K, WIDE)
    z = _prior_sum(params, params_plane, inside, K, top, WIDE)
    # A logit gets pi (q - sum_j pi_j q_j), where q = sum_c g_c y_c: q is computed twice, not kept.
    middle = tl.zeros((BLOCK,), WIDE)
    for step in range(2 * K):
        i = step % K
        last = step >= K
        share = _exp(_plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE) - top, WIDE)
        share /= z
        q = tl.zeros((BLOCK,), WIDE)
        if COUPLED:
            g0 = tl.load(grad, inside, other=0) / GAMMA
            g1 = tl.load(grad + grad_plane, inside, other=0) / GAMMA
            g2 = tl.load(grad + 2 * grad_plane, inside, other=0) / GAMMA
            y0, y1, y2, by_m0, by_m1, by_m2, by_s0, by_s1, by_s2, t0, t1, t2, sl0, sl1, sl2 = (
                _clipped_colours(i, params, params_plane, inside, K, BINS, GAMMA, FLOOR, WIDE)
            )
            q += g0 * y0 + g1 * y1 + g2 * y2
            if last:
                v2 = share * g2
                c2 = v2 * by_m2
                v1 = share * g1 + c2 * t2
                c1 = v1 * by_m1
                v0 = share * g0 + c2 * t1 + c1 * t0
                _store_plane(out, K + i, out_plane, v0 * by_m0 * GAMMA, inside)
                _store_plane(out, 4 * K + i, out_plane, c1 * GAMMA, inside)
                _store_plane(out, 7 * K + i, out_plane, c2 * GAMMA, inside)
                _store_plane(out, 2 * K + i, out_plane, v0 * by_s0, inside)
                _store_plane(out, 5 * K + i, out_plane, v1 * by_s1, inside)
                _store_plane(out, 8 * K + i, out_plane, v2 * by_s2, inside)
                _store_plane(out, 3 * K + i, out_plane, c1 * y0 * sl0, inside)
                _store_plane(out, 6 * K + i, out_plane, c2 * y0 * sl1, inside)
                _store_plane(out, 9 * K + i, out_plane, c2 * y1 * sl2, inside)
        else:
            for c in range(C):
                g = tl.load(grad + c * grad_plane, inside, other=0) / GAMMA
                centre = _mean_plane(params, K + 2 * K * c + i, params_plane, inside, WIDE)
                ls = _plane(params, 2 * K + 2 * K * c + i, params_plane, inside, WIDE)
                y, by_mean, by_scale = _clipped(
                    centre * GAMMA - SHIFT, ls, BINS, GAMMA, FLOOR, WIDE
                )
                q += g * y
                if last:
                    at = K + 2 * K * c + i
                    _store_plane(out, at, out_plane, share * g * by_mean * GAMMA, inside)
                    _store_plane(out, at + K, out_plane, share * g * by_scale, inside)
        if last:
            _store_plane(out, tl.cast(i, tl.int32), out_plane, share * (q - middle), inside)
        else:
            middle += share * q


@triton.jit
def candidates_kernel(
    params,  # (n, p, pixels)
    out,  # (n, J, C, pixels) contiguous, J = K, or K + 2 with one channel
    pixels,
    K,
    params_image,
    params_plane,
    params_pixel,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each component's mode, channel by channel; with one channel its mean's bin, and the ends."""
    image, block = _block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    params += image * params_image + pixel * params_pixel
    count = K + 2 if C == 1 else K
    out += image * count * C * pixels + pixel
    each: tl.constexpr = 3 if COUPLED else 2
    for i in range(K):
        x0 = tl.zeros((BLOCK,), WIDE)
        x1 = tl.zeros((BLOCK,), WIDE)
        for c in tl.static_range(C):
            at = K + each * K * c + i
            centre = _mean_plane(params, at, params_plane, inside, WIDE) * GAMMA - SHIFT
            ls = _plane(params, at + K, params_plane, inside, WIDE)
            if COUPLED and c == 1:
                t0, _ = _tanh(_plane(params, 3 * K + i, params_plane, inside, WIDE), WIDE)
                centre = tl.fma(t0, x0, centre)
            if COUPLED and c == 2:
                t1, _ = _tanh(_plane(params, 6 * K + i, params_plane, inside, WIDE), WIDE)
                t2, _ = _tanh(_plane(params, 9 * K + i, params_plane, inside, WIDE), WIDE)
                centre = tl.fma(t2, x1, tl.fma(t1, x0, centre))
            if C == 1:
                k = _holding(centre, BINS)
            else:
                k = _likeliest(centre, ls, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE)
            tl.store(out + tl.cast(i * C + c, tl.int64) * pixels, k, inside)
            if c == 0:
                x0 = (2 * k - (BINS - 1)).to(WIDE)
            if c == 1:
                x1 = (2 * k - (BINS - 1)).to(WIDE)
    if C == 1:
        ends = tl.zeros((BLOCK,), tl.int32)
        tl.store(out + tl.cast(K, tl.int64) * pixels, ends, inside)
        tl.store(out + tl.cast(K + 1, tl.int64) * pixels, ends + (BINS - 1), inside)


@triton.jit
def choose_kernel(
    candidates,  # (n, J, C, pixels) contiguous
    params,  # (n, p, pixels)
    out,  # (n, C, pixels) contiguous
    pixels,
    K,
    params_image,
    params_plane,
    params_pixel,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The likeliest candidate, the first of equals; bin 0 where a parameter or a score is NaN."""
    image, block = _block_of(pixels, BLOCK)
    pixels = tl.cast(pixels, tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    params += image * params_image + pixel * params_pixel
    count = K + 2 if C == 1 else K
    candidates += image * count * C * pixels + pixel
    out += image * C * pixels + pixel
    best = tl.full((BLOCK,), -float("inf"), WIDE)
    chosen = tl.zeros((BLOCK,), tl.int32)
    known = tl.zeros((BLOCK,), WIDE)
    each: tl.constexpr = 10 if COUPLED else 1 + 2 * C
    for p in range(K * each):
        parameter = _plane(params, tl.cast(p, tl.int32), params_plane, inside, WIDE)
        known = tl.where(parameter == parameter, known, parameter)
    for j in range(count):
        bins = candidates + tl.cast(j * C, tl.int64) * pixels
        top, most, total, _ = _sums(
            bins, params, pixels, params_plane, inside, K, C, COUPLED, BINS, GAMMA, SHIFT, FLOOR,
            LOG_WIDTH, WIDE,
        )  # fmt: skip
        score = most + tl.log(total)
        known = tl.where(score == score, known, score)
        known = tl.where(top - top == 0, known, float("nan"))  # no probabilities
        chosen = tl.where(score > best, j, chosen)
        best = tl.where(score > best, score, best)
    for c in range(C):
        k = tl.load(candidates + (chosen * C + c).to(tl.int64) * pixels, inside, other=0)
        tl.store(out + c * pixels, tl.where(known == known, k.to(tl.int32), 0), inside)


def discretized_logistic_mean(
    mean: Tensor, log_scale: Tensor, n_bins: int, grid: str, min_log_scale: float | None
) -> Tensor:
    constants = _grid_constants(Grid.of(grid, n_bins, min_log_scale), _wide(mean))
    inputs = [x.detach().contiguous() for x in (mean, log_scale)]
    dtype = torch.promote_types(mean.dtype, torch.float32)
    out = torch.empty(mean.shape, dtype=dtype, device=mean.device)
    if out.numel():
        with torch.cuda.device_of(mean):
            programs = (triton.cdiv(out.numel(), _BLOCK),)
            mean_kernel[programs](*inputs, out, out.numel(), **constants, **_OPTIONS)
    return out


def discretized_logistic_mean_backward(
    grad: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> tuple[Tensor, Tensor]:
    constants = _grid_constants(Grid.of(grid, n_bins, min_log_scale), _wide(mean))
    inputs = [x.detach().contiguous() for x in (grad, mean, log_scale)]
    outs = [torch.empty(mean.shape, dtype=mean.dtype, device=mean.device) for _ in range(2)]
    count = mean.numel()
    if count:
        with torch.cuda.device_of(mean):
            programs = (triton.cdiv(count, _BLOCK),)
            mean_backward_kernel[programs](*inputs, *outs, count, **constants, **_OPTIONS)
    return outs[0], outs[1]


def discretized_logistic_mode(
    mean: Tensor, log_scale: Tensor, n_bins: int, grid: str, min_log_scale: float | None
) -> Tensor:
    constants = _constants(Grid.of(grid, n_bins, min_log_scale), _wide(mean))
    inputs = [x.detach().contiguous() for x in (mean, log_scale)]
    out = torch.empty(mean.shape, dtype=bin_dtype(n_bins), device=mean.device)
    if out.numel():
        with torch.cuda.device_of(mean):
            programs = (triton.cdiv(out.numel(), _BLOCK),)
            mode_kernel[programs](*inputs, out, out.numel(), **constants, **_OPTIONS)
    return out


def discretized_logistic_mixture_mean(
    params: Tensor,
    channels: int,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    n, _, h, w = params.shape
    pairs = is_coupled(coupled, channels)
    constants = _grid_constants(Grid.of(grid, n_bins, min_log_scale), _wide(params))
    planes = params.detach().flatten(2)
    dtype = torch.promote_types(params.dtype, torch.float32)
    out = torch.empty((n, channels, h, w), dtype=dtype, device=params.device)
    if out.numel():
        with torch.cuda.device_of(params):
            mixture_mean_kernel[(n * triton.cdiv(h * w, _BLOCK),)](
                planes,
                out,
                h * w,
                components(params.shape[1], channels, pairs),
                *planes.stride(),
                C=channels,
                COUPLED=pairs,
                **constants,
                **_OPTIONS,
            )
    return out


def discretized_logistic_mixture_mean_backward(
    grad: Tensor,
    params: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    n, channels, h, w = grad.shape
    pairs = is_coupled(coupled, channels)
    constants = _grid_constants(Grid.of(grid, n_bins, min_log_scale), _wide(params))
    upstream, planes = grad.detach().flatten(2), params.detach().flatten(2)
    out = torch.empty_like(params)
    result = out.flatten(2)
    if out.numel():
        with torch.cuda.device_of(params):
            mixture_mean_backward_kernel[(n * triton.cdiv(h * w, _BLOCK),)](
                upstream,
                planes,
                result,
                h * w,
                components(params.shape[1], channels, pairs),
                *upstream.stride(),
                *planes.stride(),
                *result.stride(),
                C=channels,
                COUPLED=pairs,
                **constants,
                **_OPTIONS,
            )
    return out if result.data_ptr() == out.data_ptr() else out.copy_(result.view(out.shape))


def discretized_logistic_mixture_mode(
    params: Tensor,
    channels: int,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    n, _, h, w = params.shape
    pairs = is_coupled(coupled, channels)
    k = components(params.shape[1], channels, pairs)
    constants = _constants(Grid.of(grid, n_bins, min_log_scale), _wide(params))
    constants |= {"C": channels, "COUPLED": pairs}
    planes = params.detach().flatten(2)
    out = torch.empty((n, channels, h, w), dtype=bin_dtype(n_bins), device=params.device)
    candidates = out.new_empty((n, k + 2 if channels == 1 else k, channels, h, w))
    if out.numel():
        with torch.cuda.device_of(params):
            programs = (n * triton.cdiv(h * w, _BLOCK),)
            sizes = (h * w, k, *planes.stride())
            candidates_kernel[programs](planes, candidates, *sizes, **constants, **_OPTIONS)
            choose_kernel[programs](candidates, planes, out, *sizes, **constants, **_OPTIONS)
    return out


def _signatures() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    of = Grid.of("centred", 256, -7.0)
    for dtype, p in _POINTERS.items():
        like = torch.empty(0, dtype=dtype)
        w = "*fp64" if dtype == torch.float64 else "*fp32"
        whole, free = _constants(of, _wide(like)), _grid_constants(of, _wide(like))
        inputs = {"mean": p, "log_scale": p, "count": "i32"}
        yield "discretized_logistic_mean", mean_kernel, inputs | {"out": w}, free
        types = inputs | {"grad": w, "mean_grad": p, "log_scale_grad": p}
        yield "discretized_logistic_mean_backward", mean_backward_kernel, types, free
        yield "discretized_logistic_mode", mode_kernel, inputs | {"out": "*u8"}, whole
        for shape in ({"C": 3, "COUPLED": True}, {"C": 1, "COUPLED": False}):
            types = {"params": p, "pixels": "i32", "K": "i32"} | _strides("params")
            name = "discretized_logistic_mixture_mean"
            yield name, mixture_mean_kernel, types | {"out": w}, free | shape
            more = {"grad": w, "out": p, "grad_plane": "i32"} | _strides("grad", "out")
            name = "discretized_logistic_mixture_mean_backward"
            yield name, mixture_mean_backward_kernel, types | more, free | shape
            name = "discretized_logistic_mixture_mode"
            yield name, candidates_kernel, types | {"out": "*u8"}, whole | shape
            more = {"candidates": "*u8", "out": "*u8"}
            yield name, choose_kernel, types | more, whole | shape


SIGNATURES = tuple(_signatures())
"""Op, kernel, argument types and constants of every variant: what `triton.compile` needs."""
