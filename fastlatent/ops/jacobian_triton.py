"""Triton kernels of the jacobian family; `fastlatent.ops.jacobian` is the definition."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.elementary_triton import OPTIONS, exp, log1p, one_minus_decay, wide
from fastlatent.ops.jacobian.layout import Layout

_BLOCK = 256
_TANGENTS = 8  # for each program of the forward pass: the activation is cheap to compute again
_ROWS, _COLUMNS = 32, 32  # of the tiles of a Gram matrix


@triton.jit
def _exponential_unit(u, alpha, scale, WIDE: tl.constexpr):
    depth = tl.where(u < 0, -u, u * 0)
    decay = exp(-depth, WIDE)
    rise = scale * alpha * decay
    value = tl.where(u > 0, scale * u, -scale * alpha * one_minus_decay(depth, decay, WIDE))
    one = tl.full(u.shape, 1.0, WIDE)
    return value, tl.where(u > 0, scale * one, rise), tl.where(u > 0, 0.0, rise)


@triton.jit
def _logistic(u, WIDE: tl.constexpr):
    """Its value, what is missing to 1, and its derivative."""
    e = exp(-tl.abs(u), WIDE)
    large = 1 / (1 + e)
    small = e * large
    return tl.where(u < 0, small, large), tl.where(u < 0, large, small), small * large


@triton.jit
def _square_root(u, WIDE: tl.constexpr):
    return tl.sqrt(u) if tl.float64 == WIDE else tl.sqrt_rn(u)


@triton.jit
def _jet(u, KIND: tl.constexpr, BELOW: tl.constexpr, WIDE: tl.constexpr):
    """f(u), f'(u), f''(u)."""
    one = tl.full(u.shape, 1.0, WIDE)
    zero = tl.full(u.shape, 0.0, WIDE)
    value, first, second = u, one, zero
    if KIND == "relu" or KIND == "leaky_relu":
        first = tl.where(u > 0, 1.0, tl.where(u <= 0, BELOW * one, u))
        value = tl.where(u > 0, u, tl.where(u <= 0, BELOW * u, u))
        if KIND == "relu":
            value = tl.where(u <= 0, 0.0, value)
    elif KIND == "elu":
        value, first, second = _exponential_unit(u, 1.0, 1.0, WIDE)
    elif KIND == "selu":
        value, first, second = _exponential_unit(u, 1.6732632423543772, 1.0507009873554805, WIDE)
    elif KIND == "silu":
        s, rest, slope = _logistic(u, WIDE)
        value = u * s
        first = s + u * slope
        second = slope * (2 + u * (rest - s))
    elif KIND == "gelu":
        below = 0.5 * (1 + tl.erf(u * 0.70710678118654752440))
        density = 0.39894228040143267794 * exp(-0.5 * (u * u), WIDE)
        value = u * below
        first = below + u * density
        second = density * (2 - u * u)
    elif KIND == "softplus":
        s, _rest, slope = _logistic(u, WIDE)
        value = tl.where(u < 0, 0.0, u) + log1p(exp(-tl.abs(u), WIDE))
        first = s
        second = slope
    elif KIND == "tanh":
        double = 2 * tl.abs(u)
        e = exp(-double, WIDE)
        t = one_minus_decay(double, e, WIDE) / (1 + e)
        value = tl.where(u < 0, -t, t)
        first = 4 * e / ((1 + e) * (1 + e))
        second = -2 * value * first
    elif KIND == "sigmoid":
        s, rest, slope = _logistic(u, WIDE)
        value = s
        first = slope
        second = slope * (rest - s)
    elif KIND == "exp":
        value = exp(u, WIDE)
        first = value
        second = value
    elif KIND == "sqrt":
        value = _square_root(u, WIDE)
        first = 0.5 / value
        second = -0.25 / (value * u)
    elif KIND == "rsqrt":
        value = 1 / _square_root(u, WIDE)
        first = -0.5 * value / u
        second = -1.5 * first / u
    return value, first, second


@triton.jit
def activation_jvp_kernel(
    x,  # (n, l)
    tangents,  # (n, t, l)
    scale,  # (c,)
    shift,  # (c,)
    y,  # (n, l) contiguous
    dy,  # (n, t, l) contiguous
    t,
    length,
    channels,
    inner,  # element j belongs to channel j // inner % channels
    x_stride,  # of samples
    sample_stride,
    tangent_stride,
    KIND: tl.constexpr,
    BELOW: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    WIDE: tl.constexpr,
    TANGENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(length, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = j < length
    channel = j // inner % channels
    u = tl.load(x + sample * x_stride + j, inside, other=1)
    factor = tl.full((BLOCK,), 1.0, WIDE)
    if SCALED:
        factor = tl.load(scale + channel, inside, other=1)
        u = factor * u
    if SHIFTED:
        u += tl.load(shift + channel, inside, other=0)
    value, first, _second = _jet(u, KIND, BELOW, WIDE)
    start = tl.program_id(1) * TANGENTS
    if start == 0:
        tl.store(y + sample * length + j, value, inside)
    for k in range(start, tl.minimum(start + TANGENTS, t)):
        at = tangents + sample * sample_stride + tl.cast(k, tl.int64) * tangent_stride + j
        pushed = first * factor * tl.load(at, inside, other=0)
        tl.store(dy + (sample * t + k) * length + j, pushed, inside)


@triton.jit
def activation_jvp_backward_kernel(
    grad_y,  # (n, l) contiguous
    grad_dy,  # (n, t, l)
    x,  # (n, l)
    tangents,  # (n, t, l)
    scale,  # (c,)
    shift,  # (c,)
    by_x,  # (n, l) contiguous
    by_tangents,  # (n, t, l) contiguous
    by_scale,  # (n, l) contiguous, to be summed over samples and the elements of a channel
    by_shift,  # (n, l)
    t,
    length,
    channels,
    inner,
    grad_sample_stride,
    grad_tangent_stride,
    x_stride,
    sample_stride,
    tangent_stride,
    KIND: tl.constexpr,
    BELOW: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    SUMMED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    BENDS: tl.constexpr = KIND != "identity" and KIND != "relu" and KIND != "leaky_relu"
    blocks = tl.cdiv(length, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    j = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = j < length
    channel = j // inner % channels
    value = tl.load(x + sample * x_stride + j, inside, other=1)
    u = value
    factor = tl.full((BLOCK,), 1.0, WIDE)
    if SCALED:
        factor = tl.load(scale + channel, inside, other=1)
        u = factor * u
    if SHIFTED:
        u += tl.load(shift + channel, inside, other=0)
    _value, first, second = _jet(u, KIND, BELOW, WIDE)
    dot = tl.full((BLOCK,), 0.0, WIDE)
    for k in range(0, t):
        step = tl.cast(k, tl.int64)
        g = tl.load(
            grad_dy + sample * grad_sample_stride + step * grad_tangent_stride + j, inside, other=0
        )
        tl.store(by_tangents + (sample * t + k) * length + j, first * factor * g, inside)
        if BENDS or SUMMED:
            at = tangents + sample * sample_stride + step * tangent_stride + j
            dot += g * tl.load(at, inside, other=0)
    by_u = first * tl.load(grad_y + sample * length + j, inside, other=0)
    if BENDS:
        by_u += second * factor * dot
    tl.store(by_x + sample * length + j, factor * by_u, inside)
    if SUMMED:
        tl.store(by_scale + sample * length + j, value * by_u + first * dot, inside)
        tl.store(by_shift + sample * length + j, by_u, inside)


@triton.jit
def jacobian_gram_kernel(
    jacobian,  # (n, rows, d)
    weight,  # (n, rows)
    out,  # (n, d, d) contiguous
    rows,
    d,
    sample_stride,
    row_stride,
    column_stride,
    weight_sample_stride,
    weight_row_stride,
    WEIGHTED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block_i = tl.program_id(1)
    block_j = tl.program_id(2)
    if block_i > block_j:
        return
    sample = tl.program_id(0).to(tl.int64)
    i = block_i * COLUMNS + tl.arange(0, COLUMNS)
    j = block_j * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.full((COLUMNS, COLUMNS), 0.0, WIDE)
    for start in range(0, rows, ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        base = jacobian + sample * sample_stride
        left = tl.load(
            base + r[None, :] * row_stride + i[:, None].to(tl.int64) * column_stride,
            (r < rows)[None, :] & (i < d)[:, None],
            other=0,
        )
        right = tl.load(
            base + r[:, None] * row_stride + j[None, :].to(tl.int64) * column_stride,
            (r < rows)[:, None] & (j < d)[None, :],
            other=0,
        )
        if WEIGHTED:
            at = weight + sample * weight_sample_stride + r * weight_row_stride
            left = left * tl.load(at, r < rows, other=0)[None, :]
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=WIDE)
    # One triangle, stored twice: rounding would make the two differ under weights.
    inside = (i[:, None] <= j[None, :]) & (j < d)[None, :]
    base = out + sample * d * d
    tl.store(base + i[:, None] * d + j[None, :], total, inside)
    tl.store(base + i[:, None] + j[None, :] * d, total, inside)


def activation_jvp(
    x: Tensor,
    tangents: Tensor,
    kind: str,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor]:
    layout = Layout.of(x)
    y, dy = layout.empty(x), layout.empty(tangents)
    values, pushed = layout.rows(x.detach()), layout.rows(tangents.detach())
    (n, t, length), channels = pushed.shape, x.shape[1]
    if values.numel():
        grid = (n * triton.cdiv(length, _BLOCK), max(1, triton.cdiv(t, _TANGENTS)))
        with torch.cuda.device_of(x):
            activation_jvp_kernel[grid](
                values,
                pushed,
                *_vectors(values, scale, shift),
                layout.rows(y),
                layout.rows(dy),
                t,
                length,
                channels,
                layout.inner,
                values.stride(0),
                *pushed.stride()[:2],
                KIND=kind,
                BELOW=slope if kind == "leaky_relu" else 0.0,
                SCALED=scale is not None,
                SHIFTED=shift is not None,
                WIDE=wide(x.dtype),
                TANGENTS=_TANGENTS,
                BLOCK=_BLOCK,
                **OPTIONS,
            )
    return y, dy


def activation_jvp_backward(
    grad_y: Tensor,
    grad_dy: Tensor,
    x: Tensor,
    tangents: Tensor,
    kind: str,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = Layout.of(x)
    by_x, by_tangents = layout.empty(x), layout.empty(tangents)
    grad_values, grads = layout.rows(grad_y.detach()).contiguous(), layout.rows(grad_dy.detach())
    values, pushed = layout.rows(x.detach()), layout.rows(tangents.detach())
    (n, t, length), channels = pushed.shape, x.shape[1]
    summed = affine and (scale is not None or shift is not None)
    sums = values.new_empty((2, *values.shape) if summed else (2, 0))
    if values.numel():
        with torch.cuda.device_of(x):
            activation_jvp_backward_kernel[(n * triton.cdiv(length, _BLOCK),)](
                grad_values,
                grads,
                values,
                pushed,
                *_vectors(values, scale, shift),
                layout.rows(by_x),
                layout.rows(by_tangents),
                *sums,
                t,
                length,
                channels,
                layout.inner,
                *grads.stride()[:2],
                values.stride(0),
                *pushed.stride()[:2],
                KIND=kind,
                BELOW=slope if kind == "leaky_relu" else 0.0,
                SCALED=scale is not None,
                SHIFTED=shift is not None,
                SUMMED=summed,
                WIDE=wide(x.dtype),
                BLOCK=_BLOCK,
                **OPTIONS,
            )

    def of_channels(sums: Tensor, vector: Tensor | None) -> Tensor:
        if vector is None or not affine:
            return x.new_empty(0)
        repeats = length // max(1, channels * layout.inner)
        return sums.view(n, repeats, channels, layout.inner).sum((0, 1, 3))

    return by_x, by_tangents, of_channels(sums[0], scale), of_channels(sums[1], shift)


def _vectors(x: Tensor, *vectors: Tensor | None) -> tuple[Tensor, ...]:
    """Pointers for the kernel, which does not read those that stand for None."""
    return tuple(x if v is None else v.detach().contiguous() for v in vectors)


def jacobian_gram(jacobian: Tensor, weight: Tensor | None) -> Tensor:
    jacobian = jacobian.detach()
    n, rows, d = jacobian.shape
    out = jacobian.new_empty(n, d, d)
    weights = jacobian if weight is None else weight.detach()  # the kernel does not read the first
    if out.numel():
        tiles = triton.cdiv(d, _COLUMNS)
        with torch.cuda.device_of(jacobian):
            jacobian_gram_kernel[(n, tiles, tiles)](
                jacobian,
                weights,
                out,
                rows,
                d,
                *jacobian.stride(),
                *weights.stride()[:2],
                WEIGHTED=weight is not None,
                WIDE=wide(jacobian.dtype),
                ROWS=_ROWS,
                COLUMNS=16 if d <= 16 else _COLUMNS,
                **OPTIONS,
            )
    return out
