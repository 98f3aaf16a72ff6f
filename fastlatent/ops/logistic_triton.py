"""Triton kernels of the logistic family; `fastlatent.ops.logistic` is the definition.

One program takes a block of pixels of one image. Lengths count half-widths of a bin; the grid is
constant in the compiled code.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.logistic.arguments import is_coupled
from fastlatent.ops.logistic.cell import Grid
from fastlatent.ops.logistic.mixture import components

_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True, "num_warps": 4}
_BLOCK = 128


@triton.jit
def _exp(x, WIDE: tl.constexpr):
    """e^x to 2 units in the last place; the hardware's own loses |x| of them in float32."""
    if tl.float64 == WIDE:
        y = tl.exp(x)
    else:
        x = tl.where(x < -150, -150.0, x)
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - n * 0.693145751953125) - n * 1.42860682030941723212e-6
        y = tl.exp2(n) * tl.exp(r)
    return y


@triton.jit
def _one_minus_decay(x, decay, WIDE: tl.constexpr):
    """1 - e^-x for x >= 0 and decay = e^-x, with relative accuracy."""
    if tl.float64 == WIDE:
        safe = tl.where((decay == 1) | (x >= 1), 0.5, decay)
        short = tl.where(decay == 1, x, (1 - safe) * x / -tl.log(safe))
    else:
        short = x * _mean_decay(x, WIDE)
    return tl.where(x < 1, short, 1 - decay)


@triton.jit
def _mean_decay(x, WIDE: tl.constexpr):
    """(1 - e^-x) / x for 0 <= x <= 1."""
    if tl.float64 == WIDE:
        safe = tl.where(x > 0, x, 1.0)
        p = tl.where(x > 0, _one_minus_decay(safe, tl.exp(-safe), WIDE) / safe, 1 - x)
    else:
        p = 1.28380714e-4 * x - 1.29866373e-3
        p = p * x + 8.27309552e-3
        p = p * x - 4.16455774e-2
        p = p * x + 1.66663098e-1
        p = p * x - 4.99999770e-1
        p = p * x + 1
    return p


@triton.jit
def _log1p(x):
    u = 1 + x
    safe = tl.where(u == 1, 2.0, u)
    return tl.where(u == 1, x, tl.log(safe) * x / (safe - 1))


@triton.jit
def _tanh(x, WIDE: tl.constexpr):
    """tanh x and its derivative."""
    a = 2 * tl.abs(x)
    e = _exp(-a, WIDE)
    t = _one_minus_decay(a, e, WIDE) / (1 + e)
    return tl.where(x < 0, -t, t), 4 * e / ((1 + e) * (1 + e))


@triton.jit
def _clamped(log_scale, FLOOR: tl.constexpr):
    return tl.where(log_scale < FLOOR, FLOOR, log_scale)


@triton.jit
def _confined(mean, WIDE: tl.constexpr):
    """NaN beyond the domain, infinities among it."""
    most: tl.constexpr = 2.0**900 if tl.float64 == WIDE else 2.0**80
    return tl.where(tl.abs(mean) <= most, mean, float("nan"))


@triton.jit
def _cell(
    lower,
    centre,
    upper,
    low,
    high,
    log_scale,
    GAMMA: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """P = weight e^-decay / (near far); what is missing of P; derivatives of log P."""
    lam = _clamped(log_scale, FLOOR)
    inverse_scale = _exp(-lam, WIDE)
    h = inverse_scale / GAMMA
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
    spread = tl.where(inner, _one_minus_decay(z2, e_z2, WIDE), 1.0)
    near, far = 1 + e_alpha, 1 + e_beta
    narrow = inner & (delta <= 1)
    narrow_weight = _mean_decay(tl.where(delta <= 1, delta, 1.0), WIDE)
    wide_weight = _one_minus_decay(delta, e_delta, WIDE)
    weight = tl.where(inner, tl.where(narrow, narrow_weight, wide_weight), 1.0)
    decay = tl.where(alpha > 0, alpha, 0.0) - tl.where(narrow, LOG_WIDTH - lam, 0.0)

    sigma = tl.where(alpha >= 0, 1.0, e_alpha) / near
    by_mean = tl.where(right, 1.0, -1.0) * (sigma * spread / far) * inverse_scale
    # Infinite edges times a power of 0 are 0.
    loss = (
        tl.where(beta > 1e4, 1e4, beta) * (e_beta / far)
        + tl.where(narrow, e_delta, delta * e_delta) / weight
    )
    by_scale = tl.where(alpha < -1e4, -1e4, alpha) * sigma - tl.where(inner, loss, 0.0)
    by_scale = tl.where(log_scale < FLOOR, 0.0, by_scale)
    missing = tl.where(inner, e_delta, 0.0) + e_alpha + e_beta + e_alpha * e_beta
    return decay, weight, near, far, narrow, missing, by_mean, by_scale


@triton.jit
def _free_cell(
    k,
    mean,
    log_scale,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The cell of a channel whose mean stands alone."""
    x = (2 * k - (BINS - 1) + SHIFT).to(WIDE)
    slope = tl.full(mean.shape, -GAMMA, WIDE)
    lower = tl.fma(slope, mean, x - 1)
    centre = tl.fma(slope, mean, x)
    upper = tl.fma(slope, mean, x + 1)
    low, high = (k == 0).to(tl.int32), (k == BINS - 1).to(tl.int32)
    return _cell(lower, centre, upper, low, high, log_scale, GAMMA, FLOOR, LOG_WIDTH, WIDE)


@triton.jit
def _tied_cell(
    k,
    centre_of_mean,
    log_scale,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The cell of a channel whose mean moves with the channels before."""
    x = (2 * k - (BINS - 1)).to(WIDE)
    low, high = (k == 0).to(tl.int32), (k == BINS - 1).to(tl.int32)
    lower, centre = (x - 1) - centre_of_mean, x - centre_of_mean
    upper = (x + 1) - centre_of_mean
    return _cell(lower, centre, upper, low, high, log_scale, GAMMA, FLOOR, LOG_WIDTH, WIDE)


@triton.jit
def _log_prob_of(decay, weight, edges, narrow, missing):
    """Relative accuracy down to log P = -0: log1p where P is near 1."""
    share = weight / edges
    likely = (share >= 0.5) & (narrow == 0)
    return tl.where(likely, _log1p(-missing / edges), tl.log(share)) - decay


@triton.jit
def single_kernel(
    bins,
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
    k = tl.load(bins + at, inside, other=0).to(tl.int32)
    m = _confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE)
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    decay, weight, near, far, narrow, missing, _, _ = _free_cell(
        k, m, ls, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH, WIDE
    )
    tl.store(out + at, _log_prob_of(decay, weight, near * far, narrow, missing), inside)


@triton.jit
def single_backward_kernel(
    grad,
    bins,
    mean,
    log_scale,
    mean_grad,
    log_scale_grad,
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
    k = tl.load(bins + at, inside, other=0).to(tl.int32)
    m = _confined(tl.load(mean + at, inside, other=0).to(WIDE), WIDE)
    ls = tl.load(log_scale + at, inside, other=0).to(WIDE)
    g = tl.load(grad + at, inside, other=0)
    _, _, _, _, _, _, by_mean, by_scale = _free_cell(
        k, m, ls, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH, WIDE
    )
    tl.store(mean_grad + at, g * by_mean, inside)
    tl.store(log_scale_grad + at, g * by_scale, inside)


@triton.jit
def _plane(params, index, stride, inside, WIDE: tl.constexpr):
    return tl.load(params + index.to(tl.int64) * stride, inside, other=0).to(WIDE)


@triton.jit
def _mean_plane(params, index, stride, inside, WIDE: tl.constexpr):
    return _confined(_plane(params, index, stride, inside, WIDE), WIDE)


@triton.jit
def _block_of(pixels, BLOCK: tl.constexpr):
    """The image and the block of its pixels; one axis, since CUDA's others end at 65,535."""
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), (program % blocks).to(tl.int64)


@triton.jit
def _top(params, plane_stride, inside, K, WIDE: tl.constexpr):
    top = tl.load(params, inside, other=0).to(WIDE)
    for i in range(1, K):
        top = tl.maximum(top, _plane(params, tl.cast(i, tl.int32), plane_stride, inside, WIDE))
    return top


@triton.jit
def _joint(
    i,
    bins,  # of the block's pixels, first channel
    params,  # of the block's pixels, first plane
    bins_plane,
    params_plane,
    inside,
    K,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Component i's probability of all channels, weight e^exponent, without its logit."""
    if COUPLED:
        red = tl.load(bins, inside, other=0).to(tl.int32)
        green = tl.load(bins + bins_plane, inside, other=0).to(tl.int32)
        blue = tl.load(bins + 2 * bins_plane, inside, other=0).to(tl.int32)
        x0 = (2 * red - (BINS - 1)).to(WIDE)
        x1 = (2 * green - (BINS - 1)).to(WIDE)
        t0, _ = _tanh(_plane(params, 3 * K + i, params_plane, inside, WIDE), WIDE)
        t1, _ = _tanh(_plane(params, 6 * K + i, params_plane, inside, WIDE), WIDE)
        t2, _ = _tanh(_plane(params, 9 * K + i, params_plane, inside, WIDE), WIDE)
        m0 = _mean_plane(params, K + i, params_plane, inside, WIDE)
        m1 = _mean_plane(params, 4 * K + i, params_plane, inside, WIDE) * GAMMA
        m2 = _mean_plane(params, 7 * K + i, params_plane, inside, WIDE) * GAMMA
        s0 = _plane(params, 2 * K + i, params_plane, inside, WIDE)
        s1 = _plane(params, 5 * K + i, params_plane, inside, WIDE)
        s2 = _plane(params, 8 * K + i, params_plane, inside, WIDE)
        d0, w0, n0, f0, _, _, _, _ = _free_cell(
            red, m0, s0, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH, WIDE
        )
        d1, w1, n1, f1, _, _, _, _ = _tied_cell(
            green, tl.fma(t0, x0, m1), s1, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE
        )
        d2, w2, n2, f2, _, _, _, _ = _tied_cell(
            blue, tl.fma(t2, x1, tl.fma(t1, x0, m2)), s2, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE
        )
        return -(d0 + d1 + d2), (w0 * w1 * w2) / ((n0 * f0) * (n1 * f1) * (n2 * f2))
    exponent = tl.zeros(inside.shape, WIDE)
    weight = exponent + 1
    for c in range(C):
        k = tl.load(bins + c * bins_plane, inside, other=0).to(tl.int32)
        m = _mean_plane(params, K + 2 * K * c + i, params_plane, inside, WIDE)
        ls = _plane(params, 2 * K + 2 * K * c + i, params_plane, inside, WIDE)
        decay, w, near, far, _, _, _, _ = _free_cell(
            k, m, ls, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH, WIDE
        )
        exponent -= decay
        weight *= w / (near * far)
        if C > 16:  # a long product could leave the range
            exponent += tl.log(weight)
            weight = tl.zeros(inside.shape, WIDE) + 1
    return exponent, weight


@triton.jit
def _sums(
    bins,
    params,
    bins_plane,
    params_plane,
    inside,
    K,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Largest logit and exponent, and the sums over the components around them."""
    top = _top(params, params_plane, inside, K, WIDE)
    # Not infinity, from which -infinity can't be taken.
    least: tl.constexpr = -1.7976931348623157e308 if tl.float64 == WIDE else -3.4028234663852886e38
    most = tl.full(inside.shape, least, WIDE)
    total = tl.zeros(inside.shape, WIDE)
    z = tl.zeros(inside.shape, WIDE)
    for i in range(K):
        exponent, weight = _joint(
            i, bins, params, bins_plane, params_plane, inside, K, C, COUPLED, BINS, GAMMA, SHIFT,
            FLOOR, LOG_WIDTH, WIDE,
        )  # fmt: skip
        logit = _plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE) - top
        exponent += logit
        highest = tl.maximum(most, exponent)
        total = total * tl.exp(most - highest) + weight * tl.exp(exponent - highest)
        most = highest
        z += tl.exp(logit)
    return top, most, total, z


@triton.jit
def mixture_kernel(
    bins,  # (n, C, pixels)
    params,  # (n, p, pixels)
    out,  # (n, pixels), or (n, blocks) sums where SUM
    pixels,
    K,
    bins_image,
    bins_plane,
    bins_pixel,
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
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = _block_of(pixels, BLOCK)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    _, most, total, z = _sums(
        bins + image * bins_image + pixel * bins_pixel,
        params + image * params_image + pixel * params_pixel,
        bins_plane, params_plane, inside, K, C, COUPLED, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH,
        WIDE,
    )  # fmt: skip
    value = most + (tl.log(total) - tl.log(z))
    if SUM:
        sums = tl.sum(tl.where(inside, value, 0.0), 0)
        tl.store(out + image * tl.cdiv(pixels, BLOCK) + block, sums)
    else:
        tl.store(out + image * pixels + pixel, value, inside)


@triton.jit
def _store_plane(to, index, stride, value, inside):
    tl.store(to + index.to(tl.int64) * stride, value, inside)


@triton.jit
def mixture_backward_kernel(
    grad,  # (n,) or (n, pixels)
    bins,
    params,
    out,  # like params
    pixels,
    K,
    grad_image,
    grad_pixel,
    bins_image,
    bins_plane,
    bins_pixel,
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
    LOG_WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = _block_of(pixels, BLOCK)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    bins += image * bins_image + pixel * bins_pixel
    params += image * params_image + pixel * params_pixel
    out += image * out_image + pixel * out_pixel
    top, most, total, z = _sums(
        bins, params, bins_plane, params_plane, inside, K, C, COUPLED, BINS, GAMMA, SHIFT, FLOOR,
        LOG_WIDTH, WIDE,
    )  # fmt: skip
    g = tl.load(grad + image * grad_image + pixel * grad_pixel, inside, other=0)
    for i in range(K):
        exponent, weight = _joint(
            i, bins, params, bins_plane, params_plane, inside, K, C, COUPLED, BINS, GAMMA, SHIFT,
            FLOOR, LOG_WIDTH, WIDE,
        )  # fmt: skip
        logit = _plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE) - top
        share = g * (weight * tl.exp(exponent + logit - most) / total)
        _store_plane(out, tl.cast(i, tl.int32), out_plane, share - g * (tl.exp(logit) / z), inside)
        if COUPLED:
            red = tl.load(bins, inside, other=0).to(tl.int32)
            green = tl.load(bins + bins_plane, inside, other=0).to(tl.int32)
            blue = tl.load(bins + 2 * bins_plane, inside, other=0).to(tl.int32)
            x0 = (2 * red - (BINS - 1)).to(WIDE)
            x1 = (2 * green - (BINS - 1)).to(WIDE)
            t0, slope0 = _tanh(_plane(params, 3 * K + i, params_plane, inside, WIDE), WIDE)
            t1, slope1 = _tanh(_plane(params, 6 * K + i, params_plane, inside, WIDE), WIDE)
            t2, slope2 = _tanh(_plane(params, 9 * K + i, params_plane, inside, WIDE), WIDE)
            m0 = _mean_plane(params, K + i, params_plane, inside, WIDE)
            m1 = _mean_plane(params, 4 * K + i, params_plane, inside, WIDE) * GAMMA
            m2 = _mean_plane(params, 7 * K + i, params_plane, inside, WIDE) * GAMMA
            s0 = _plane(params, 2 * K + i, params_plane, inside, WIDE)
            s1 = _plane(params, 5 * K + i, params_plane, inside, WIDE)
            s2 = _plane(params, 8 * K + i, params_plane, inside, WIDE)
            _, _, _, _, _, _, by_m0, by_s0 = _free_cell(
                red, m0, s0, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH, WIDE
            )
            _, _, _, _, _, _, by_m1, by_s1 = _tied_cell(
                green, tl.fma(t0, x0, m1), s1, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE
            )
            _, _, _, _, _, _, by_m2, by_s2 = _tied_cell(
                blue, tl.fma(t2, x1, tl.fma(t1, x0, m2)), s2, BINS, GAMMA, FLOOR, LOG_WIDTH, WIDE
            )
            _store_plane(out, K + i, out_plane, share * by_m0, inside)
            _store_plane(out, 2 * K + i, out_plane, share * by_s0, inside)
            _store_plane(out, 4 * K + i, out_plane, share * by_m1, inside)
            _store_plane(out, 5 * K + i, out_plane, share * by_s1, inside)
            _store_plane(out, 7 * K + i, out_plane, share * by_m2, inside)
            _store_plane(out, 8 * K + i, out_plane, share * by_s2, inside)
            x0, x1 = x0 / GAMMA, x1 / GAMMA
            _store_plane(out, 3 * K + i, out_plane, share * by_m1 * x0 * slope0, inside)
            _store_plane(out, 6 * K + i, out_plane, share * by_m2 * x0 * slope1, inside)
            _store_plane(out, 9 * K + i, out_plane, share * by_m2 * x1 * slope2, inside)
        else:
            for c in range(C):
                k = tl.load(bins + c * bins_plane, inside, other=0).to(tl.int32)
                m = _mean_plane(params, K + 2 * K * c + i, params_plane, inside, WIDE)
                ls = _plane(params, 2 * K + 2 * K * c + i, params_plane, inside, WIDE)
                _, _, _, _, _, _, by_mean, by_scale = _free_cell(
                    k, m, ls, BINS, GAMMA, SHIFT, FLOOR, LOG_WIDTH, WIDE
                )
                _store_plane(out, K + 2 * K * c + i, out_plane, share * by_mean, inside)
                _store_plane(out, 2 * K + 2 * K * c + i, out_plane, share * by_scale, inside)


@triton.jit
def sample_kernel(
    params,
    uniforms,  # (n, 1 + C, pixels)
    out,  # (n, C, pixels) contiguous
    pixels,
    K,
    params_image,
    params_plane,
    params_pixel,
    uniforms_image,
    uniforms_plane,
    uniforms_pixel,
    C: tl.constexpr,
    COUPLED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BINS: tl.constexpr,
    GAMMA: tl.constexpr,
    SHIFT: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, block = _block_of(pixels, BLOCK)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    params += image * params_image + pixel * params_pixel
    uniforms += image * uniforms_image + pixel * uniforms_pixel
    out += image * C * pixels + pixel
    top = _top(params, params_plane, inside, K, WIDE)
    z = tl.zeros((BLOCK,), WIDE)
    for i in range(K):
        z += _exp(_plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE) - top, WIDE)
    threshold = tl.load(uniforms, inside, other=0) * z
    total = tl.zeros((BLOCK,), WIDE)
    component = tl.zeros((BLOCK,), tl.int32)
    for i in range(K - 1):
        logit = _plane(params, tl.cast(i, tl.int32), params_plane, inside, WIDE)
        total += _exp(logit - top, WIDE)
        component += tl.where(total > threshold, 0, 1)

    each: tl.constexpr = 3 if COUPLED else 2
    first = tl.zeros((BLOCK,), WIDE)
    second = tl.zeros((BLOCK,), WIDE)
    for c in tl.static_range(C):
        at = K + each * K * c + component
        mean = _mean_plane(params, at, params_plane, inside, WIDE)
        log_scale = _plane(params, at + K, params_plane, inside, WIDE)
        y = mean * GAMMA - SHIFT
        if COUPLED and c == 1:
            t0, _ = _tanh(_plane(params, 3 * K + component, params_plane, inside, WIDE), WIDE)
            y = tl.fma(t0, first, y)
        if COUPLED and c == 2:
            t1, _ = _tanh(_plane(params, 6 * K + component, params_plane, inside, WIDE), WIDE)
            t2, _ = _tanh(_plane(params, 9 * K + component, params_plane, inside, WIDE), WIDE)
            y = tl.fma(t2, second, tl.fma(t1, first, y))
        u = tl.load(uniforms + (1 + c) * uniforms_plane, inside, other=0.5)
        u = tl.where(u < 2.0**-25, 2.0**-25, tl.where(u > 1 - 2.0**-24, 1 - 2.0**-24, u))
        logit = tl.log(u) - _log1p(-u)
        lam = _clamped(log_scale, FLOOR)
        y += GAMMA * _exp(tl.where(lam > 64, 64.0, lam), WIDE) * logit
        y = tl.where(y < 1 - BINS, 1.0 - BINS, tl.where(y > BINS - 1, BINS - 1.0, y))
        y = tl.where(threshold == threshold, y, threshold)
        if QUANTIZED:
            k = tl.floor((y + BINS) * 0.5)
            k = tl.where(k > BINS - 1, BINS - 1.0, k)
            y = 2 * k - (BINS - 1)
            tl.store(out + c * pixels, tl.where(k == k, k, 0.0).to(tl.int32), inside)
        else:
            tl.store(out + c * pixels, (y + SHIFT) / GAMMA, inside)
        if c == 0:
            first = y
        if c == 1:
            second = y


def _wide(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _grid_constants(of: Grid, wide: Any) -> dict[str, Any]:
    return {
        "BINS": of.n,
        "GAMMA": float(of.gamma),
        "SHIFT": of.shift,
        "FLOOR": of.floor,
        "WIDE": wide,
        "BLOCK": _BLOCK,
    }


def _constants(of: Grid, wide: Any) -> dict[str, Any]:
    """Also what a likelihood needs."""
    return _grid_constants(of, wide) | {"LOG_WIDTH": math.log(2 / of.gamma)}


def discretized_logistic_log_prob(
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    constants = _constants(Grid.of(grid, n_bins, min_log_scale), _wide(mean))
    inputs = [x.detach().contiguous() for x in (bins, mean, log_scale)]
    dtype = torch.promote_types(mean.dtype, torch.float32)
    out = torch.empty(bins.shape, dtype=dtype, device=mean.device)
    if out.numel():
        with torch.cuda.device_of(mean):
            programs = (triton.cdiv(out.numel(), _BLOCK),)
            single_kernel[programs](*inputs, out, out.numel(), **constants, **_OPTIONS)
    return out


def discretized_logistic_backward(
    grad: Tensor,
    bins: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> tuple[Tensor, Tensor]:
    constants = _constants(Grid.of(grid, n_bins, min_log_scale), _wide(mean))
    inputs = [x.detach().contiguous() for x in (grad, bins, mean, log_scale)]
    outs = [torch.empty(bins.shape, dtype=mean.dtype, device=mean.device) for _ in range(2)]
    count = bins.numel()
    if count:
        with torch.cuda.device_of(mean):
            programs = (triton.cdiv(count, _BLOCK),)
            single_backward_kernel[programs](*inputs, *outs, count, **constants, **_OPTIONS)
    return outs[0], outs[1]


def _mixture(bins: Tensor, params: Tensor, coupled: bool | None) -> tuple[Tensor, Tensor, dict]:
    """Planes of pixels, and what the kernels are compiled for."""
    c = bins.shape[1]
    pairs = is_coupled(coupled, c)
    return bins.flatten(2), params.detach().flatten(2), {"C": c, "COUPLED": pairs}


def discretized_logistic_mixture_log_prob(
    bins: Tensor,
    params: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
    reduction: str,
) -> Tensor:
    n, c, h, w = bins.shape
    wide = _wide(params)
    planes, weights, shape = _mixture(bins, params, coupled)
    constants = _constants(Grid.of(grid, n_bins, min_log_scale), wide)
    blocks, total = triton.cdiv(h * w, _BLOCK), reduction == "image"
    dtype = torch.promote_types(params.dtype, torch.float32)
    out = torch.empty((n, blocks) if total else (n, h, w), dtype=dtype, device=params.device)
    if out.numel():
        with torch.cuda.device_of(params):
            mixture_kernel[(n * blocks,)](
                planes,
                weights,
                out,
                h * w,
                components(params.shape[1], c, shape["COUPLED"]),
                *planes.stride(),
                *weights.stride(),
                **shape,
                **constants,
                SUM=total,
                **_OPTIONS,
            )
    return out.sum(1, dtype=torch.float64).to(dtype) if total else out


def discretized_logistic_mixture_backward(
    grad: Tensor,
    bins: Tensor,
    params: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    n, c, h, w = bins.shape
    planes, weights, shape = _mixture(bins, params, coupled)
    constants = _constants(Grid.of(grid, n_bins, min_log_scale), _wide(params))
    out = torch.empty_like(params)
    result = out.flatten(2)
    upstream = grad.detach()
    upstream = upstream[:, None].expand(n, h * w) if grad.dim() == 1 else upstream.flatten(1)
    if out.numel():
        with torch.cuda.device_of(params):
            mixture_backward_kernel[(n * triton.cdiv(h * w, _BLOCK),)](
                upstream,
                planes,
                weights,
                result,
                h * w,
                components(params.shape[1], c, shape["COUPLED"]),
                *upstream.stride(),
                *planes.stride(),
                *weights.stride(),
                *result.stride(),
                **shape,
                **constants,
                **_OPTIONS,
            )
    return out if result.data_ptr() == out.data_ptr() else out.copy_(result.view(out.shape))


def discretized_logistic_mixture_bins(params: Tensor, uniforms: Tensor, *rest: Any) -> Tensor:
    return _sample(True, params, uniforms, *rest)


def discretized_logistic_mixture_values(params: Tensor, uniforms: Tensor, *rest: Any) -> Tensor:
    return _sample(False, params, uniforms, *rest)


def _sample(
    quantized: bool,
    params: Tensor,
    uniforms: Tensor,
    coupled: bool | None,
    n_bins: int,
    grid: str,
    min_log_scale: float | None,
) -> Tensor:
    n, c, h, w = uniforms.shape
    constants = _grid_constants(Grid.of(grid, n_bins, min_log_scale), _wide(params))
    drivers, weights, shape = _mixture(uniforms, params, is_coupled(coupled, c - 1))
    dtype = (torch.uint8 if n_bins <= 256 else torch.int32) if quantized else uniforms.dtype
    out = torch.empty((n, c - 1, h, w), dtype=dtype, device=params.device)
    if out.numel():
        with torch.cuda.device_of(params):
            sample_kernel[(n * triton.cdiv(h * w, _BLOCK),)](
                weights,
                drivers,
                out,
                h * w,
                components(params.shape[1], c - 1, shape["COUPLED"]),
                *weights.stride(),
                *drivers.stride(),
                **(shape | {"C": c - 1}),
                QUANTIZED=quantized,
                **constants,
                **_OPTIONS,
            )
    return out


_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}


def _strides(*names: str) -> dict[str, str]:
    return {
        f"{name}_{part}": "i32"
        for name in names
        for part in (("image", "pixel") if name == "grad" else ("image", "plane", "pixel"))
    }


def _signatures() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    for dtype, p in _POINTERS.items():
        wide, w = (tl.float64, "*fp64") if dtype == torch.float64 else (tl.float32, "*fp32")
        of = Grid.of("centred", 256, -7.0)
        constants, free = _constants(of, wide), _grid_constants(of, wide)
        types = {"bins": "*u8", "mean": p, "log_scale": p, "out": w, "count": "i32"}
        yield "discretized_logistic_log_prob", single_kernel, types, constants
        types = {"grad": w, "bins": "*u8", "mean": p, "log_scale": p, "count": "i32"}
        types |= {"mean_grad": p, "log_scale_grad": p}
        yield "discretized_logistic_backward", single_backward_kernel, types, constants
        sizes = {"pixels": "i32", "K": "i32"}
        for shape in ({"C": 3, "COUPLED": True}, {"C": 1, "COUPLED": False}):
            types = {"bins": "*u8", "params": p, "out": w} | sizes | _strides("bins", "params")
            name = "discretized_logistic_mixture_log_prob"
            yield name, mixture_kernel, types, constants | shape | {"SUM": shape["COUPLED"]}
            types = {"grad": w, "bins": "*u8", "params": p, "out": p} | sizes
            types |= _strides("grad", "bins", "params", "out")
            name = "discretized_logistic_mixture_backward"
            yield name, mixture_backward_kernel, types, constants | shape
            types = {"params": p, "uniforms": w} | sizes | _strides("params", "uniforms")
            quantized = free | shape | {"QUANTIZED": True}
            name = "discretized_logistic_mixture_bins"
            yield name, sample_kernel, types | {"out": "*u8"}, quantized
            name = "discretized_logistic_mixture_values"
            yield name, sample_kernel, types | {"out": w}, quantized | {"QUANTIZED": False}


SIGNATURES = tuple(_signatures())
"""Op, kernel, argument types and constants of every variant: what `triton.compile` needs."""
