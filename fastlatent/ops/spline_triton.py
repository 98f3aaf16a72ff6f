"""Triton kernels of the spline family; `fastlatent.ops.spline` is the definition.

Weights of a block of places lie in a matrix with a column for each control point of the span; a
step of the recursion needs each column's left neighbour, which a masked sum fetches.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops._register import contiguous_rows
from fastlatent.ops.elementary_triton import OPTIONS


@triton.jit
def _column_before(x, COUNT: tl.constexpr):
    """(rows, COUNT), each column moved one to the right; zeros come in."""
    column = tl.arange(0, COUNT)
    taken = (column[None, :] == column[:, None] - 1)[None, :, :]
    return tl.sum(tl.where(taken, x[:, None, :], 0.0), 2)


@triton.jit
def _first(t, knots, k, DEGREE: tl.constexpr):
    """For places t (rows,) on one curve the first control point with influence; 0 for NaN."""
    first = tl.zeros_like(t).to(tl.int32)
    for start in range(DEGREE + 1, k, 32):
        at = start + tl.arange(0, 32)
        knot = tl.load(knots + at, at < k, other=0.0)
        first += tl.sum(((t[:, None] >= knot) & (at < k)).to(tl.int32), 1)
    return first


@triton.jit
def _weights(t, first, knots, DEGREE: tl.constexpr, ORDER: tl.constexpr, COUNT: tl.constexpr):
    """Weights (rows, COUNT) of the control points from `first` on at places t (rows,)."""
    column = tl.arange(0, COUNT)[None, :]
    x = t[:, None]
    weights = tl.where(column == 0, x - x + 1, 0.0)  # NaN for NaN, at every order
    for s in range(1, DEGREE + 1):
        right_at = first[:, None] + (DEGREE + 1) + column
        right = tl.load(knots + right_at, column < s, other=1.0)
        left = tl.load(knots + right_at - s, column < s, other=0.0)
        part = weights / (right - left)
        value = (right - x) * part + _column_before((x - left) * part, COUNT)
        slope = s * (_column_before(part, COUNT) - part)
        weights = tl.where(s <= DEGREE - ORDER, value, slope)
    return weights


@triton.jit
def bspline_kernel(
    control,  # (n, k, d) contiguous
    t,  # (m,) or (n, m)
    knots,  # (k + degree + 1,) or (n, k + degree + 1)
    out,  # (n, m, d)
    k,
    m,
    d,
    t_stride,  # 0 where all curves share t
    knots_stride,
    DEGREE: tl.constexpr,
    ORDER: tl.constexpr,
    COUNT: tl.constexpr,  # power of two that holds degree + 1
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    curve = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    place = tl.load(t + curve * t_stride + row, row < m, other=0.0)
    knots += curve * knots_stride
    first = _first(place, knots, k, DEGREE)
    weights = _weights(place, first, knots, DEGREE, ORDER, COUNT)
    column = tl.arange(0, COUNT)[None, :]
    for start in range(0, d, WIDTH):
        c = start + tl.arange(0, WIDTH)[None, :]
        inside = (row < m)[:, None] & (c < d)
        sum = tl.zeros((ROWS, WIDTH), place.dtype)
        for j in range(DEGREE + 1):
            weight = tl.sum(tl.where(column == j, weights, 0.0), 1)
            at = (curve * k + first + j)[:, None] * d + c
            sum += weight[:, None] * tl.load(control + at, inside, other=0.0)
        tl.store(out + (curve * m + row)[:, None] * d + c, sum, inside)


@triton.jit
def bspline_backward_kernel(
    grad,  # (n, m, d) contiguous
    t,
    knots,
    out,  # (n, k, d)
    k,
    m,
    d,
    t_stride,
    knots_stride,
    DEGREE: tl.constexpr,
    ORDER: tl.constexpr,
    COUNT: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    curve = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    column = tl.arange(0, COUNT)
    sum = tl.zeros((ROWS, WIDTH), out.dtype.element_ty)
    # Control points gather from the places in order: no atomics, the same bits each time.
    knots += curve * knots_stride
    lowest = tl.program_id(1) * ROWS
    for start in range(0, m, PLACES):
        s = start + tl.arange(0, PLACES)
        place = tl.load(t + curve * t_stride + s, s < m, other=0.0)
        first = _first(place, knots, k, DEGREE)
        if (tl.min(first, 0) < lowest + ROWS) & (tl.max(first, 0) + DEGREE >= lowest):
            weights = _weights(place, first, knots, DEGREE, ORDER, COUNT)
            j = row[None, :] - first[:, None]
            chosen = j[:, :, None] == column[None, None, :]
            weight = tl.sum(tl.where(chosen, weights[:, None, :], 0.0), 2)
            reached = (j >= 0) & (j <= DEGREE) & (s < m)[:, None]
            inside = (s < m)[:, None] & (c < d)[None, :]
            g = tl.load(grad + (curve * m + s)[:, None] * d + c[None, :], inside, other=0.0)
            terms = weight[:, :, None] * g[:, None, :]
            sum += tl.sum(tl.where(reached[:, :, None], terms, 0.0), 0)
    at = (curve * k + row)[:, None] * d + c[None, :]
    tl.store(out + at, sum, (row < k)[:, None] & (c < d)[None, :])


@triton.jit
def _chord(points, row, c, m, d, step):
    """Points `row + 1` minus points `row`; 0 where there is no such chord."""
    inside = ((row >= 0) & (row + 1 < m))[:, None] & (c < d)[None, :]
    at = points + row.to(tl.int64)[:, None] * step + c[None, :]
    return tl.load(at + step, inside, other=0.0) - tl.load(at, inside, other=0.0)


@triton.jit
def _squares(points, row, m, d, step, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Squared lengths of the chords that start at `row`."""
    sum = tl.zeros((ROWS,), points.dtype.element_ty)
    for start in range(0, d, WIDTH):
        chord = _chord(points, row, start + tl.arange(0, WIDTH), m, d, step)
        sum += tl.sum(chord * chord, 1)
    return sum


@triton.jit
def polyline_kernel(
    points,  # (n, m, d), contiguous along d
    out,  # (n,)
    m,
    d,
    line_stride,
    step,
    ENERGY: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    parts = tl.zeros((ROWS,), out.dtype.element_ty)
    for start in range(0, m - 1, ROWS):
        row = start + tl.arange(0, ROWS)
        squares = _squares(points + line * line_stride, row, m, d, step, ROWS, WIDTH)
        parts += squares if ENERGY else tl.sqrt(squares)
    total = tl.sum(parts, 0)
    tl.store(out + line, (m - 1) * total if ENERGY else total)


@triton.jit
def _weight(squares, g, m, ENERGY: tl.constexpr):
    """What a chord is multiplied by."""
    if ENERGY:
        weight = 2 * (m - 1) * g + tl.zeros_like(squares)
    else:
        zero = squares == 0
        weight = tl.where(zero, 0.0, g / tl.sqrt(tl.where(zero, 1.0, squares)))
    return weight


@triton.jit
def polyline_backward_kernel(
    grad,  # (n,)
    points,
    out,  # (n, m, d) contiguous
    m,
    d,
    line_stride,
    step,
    ENERGY: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    g = tl.load(grad + line)
    points += line * line_stride
    before, after = tl.zeros((ROWS,), g.dtype), tl.zeros((ROWS,), g.dtype)
    if not ENERGY:
        before = _squares(points, row - 1, m, d, step, ROWS, WIDTH)
        after = _squares(points, row, m, d, step, ROWS, WIDTH)
    before = _weight(before, g, m, ENERGY)
    after = _weight(after, g, m, ENERGY)
    for start in range(0, d, WIDTH):
        c = start + tl.arange(0, WIDTH)
        force = before[:, None] * _chord(points, row - 1, c, m, d, step)
        force -= after[:, None] * _chord(points, row, c, m, d, step)
        at = (line * m + row)[:, None] * d + c[None, :]
        tl.store(out + at, force, (row < m)[:, None] & (c < d)[None, :])


def bspline(control: Tensor, t: Tensor, knots: Tensor, degree: int, order: int) -> Tensor:
    n, k, d = control.shape
    m = t.shape[-1]
    control, t, knots = (x.detach().contiguous() for x in (control, t, knots))
    out = control.new_empty(n, m, d)
    if out.numel():
        count, rows = _sizes(degree)
        with torch.cuda.device_of(control):
            bspline_kernel[(n, triton.cdiv(m, rows))](
                control,
                t,
                knots,
                out,
                k,
                m,
                d,
                *_strides(t, knots),
                DEGREE=degree,
                ORDER=order,
                COUNT=count,
                ROWS=rows,
                WIDTH=min(32, triton.next_power_of_2(d)),
                **OPTIONS,
            )
    return out


def bspline_backward(grad: Tensor, t: Tensor, knots: Tensor, degree: int, order: int) -> Tensor:
    n, m, d = grad.shape
    k = knots.shape[-1] - degree - 1
    grad, t, knots = (x.detach().contiguous() for x in (grad, t, knots))
    out = grad.new_empty(n, k, d)
    if out.numel():
        count, places = _sizes(degree)
        rows, width = 16, min(16, triton.next_power_of_2(d))
        with torch.cuda.device_of(grad):
            bspline_backward_kernel[(n, triton.cdiv(k, rows), triton.cdiv(d, width))](
                grad,
                t,
                knots,
                out,
                k,
                m,
                d,
                *_strides(t, knots),
                DEGREE=degree,
                ORDER=order,
                COUNT=count,
                PLACES=min(places, 16),
                ROWS=rows,
                WIDTH=width,
                **OPTIONS,
            )
    return out


def _sizes(degree: int) -> tuple[int, int]:
    """Columns that hold degree + 1 weights, and places for which a cube of them fits registers."""
    count = triton.next_power_of_2(degree + 1)
    return count, max(2, min(64, 2048 // count**2))


def _strides(t: Tensor, knots: Tensor) -> tuple[int, int]:
    return (t.stride(0) if t.dim() == 2 else 0), (knots.stride(0) if knots.dim() == 2 else 0)


def polyline_length(points: Tensor) -> Tensor:
    return _measure(points, energy=False)


def polyline_energy(points: Tensor) -> Tensor:
    return _measure(points, energy=True)


def polyline_length_backward(grad: Tensor, points: Tensor) -> Tensor:
    return _pull(grad, points, energy=False)


def polyline_energy_backward(grad: Tensor, points: Tensor) -> Tensor:
    return _pull(grad, points, energy=True)


def _measure(points: Tensor, energy: bool) -> Tensor:
    n, m, d = points.shape
    points = _rows(points)
    out = points.new_empty(n)
    if n:
        with torch.cuda.device_of(points):
            polyline_kernel[(n,)](
                points,
                out,
                m,
                d,
                *points.stride()[:2],
                ENERGY=energy,
                **_tile(d),
                **OPTIONS,
            )
    return out


def _pull(grad: Tensor, points: Tensor, energy: bool) -> Tensor:
    n, m, d = points.shape
    grad, points = grad.detach().contiguous(), _rows(points)
    out = points.new_empty(n, m, d)
    if out.numel():
        tile = _tile(d)
        with torch.cuda.device_of(points):
            polyline_backward_kernel[(n, triton.cdiv(m, tile["ROWS"]))](
                grad,
                points,
                out,
                m,
                d,
                *points.stride()[:2],
                ENERGY=energy,
                **tile,
                **OPTIONS,
            )
    return out


def _rows(points: Tensor) -> Tensor:
    return contiguous_rows(points.detach())


def _tile(d: int) -> dict[str, int]:
    width = min(256, triton.next_power_of_2(max(d, 1)))
    return {"ROWS": min(64, 2048 // width), "WIDTH": width}
