"""Triton kernels of the bits family; `fastlatent.ops.bits` is the definition."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.bits import SURROGATES
from fastlatent.ops.elementary_triton import OPTIONS, run_on_elements, wide


@triton.jit
def _distance_to_one(x):
    """1 - |tanh x|, without cancellation."""
    return 2 / (tl.exp(2 * tl.abs(x)) + 1)


@triton.jit
def _sign(a):
    return tl.where(a >= 0, 1.0, tl.where(a < 0, -1.0, a))


@triton.jit
def binarize_kernel(
    x,  # (n, d) contiguous
    codes,  # (n, d)
    error,  # (n,)
    n,
    d,
    TANH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), WIDE)
    for start in range(0, d, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < n)[:, None] & (column < d)[None, :]
        at = row[:, None] * d + column[None, :]
        logit = tl.load(x + at, inside, other=0).to(WIDE)
        code = _sign(logit)
        tl.store(codes + at, code, inside)
        distance = _distance_to_one(logit) if TANH else tl.abs(logit - code)
        total += tl.sum(tl.where(inside, distance, 0), 1)
    tl.store(error + row, total / d, row < n)


@triton.jit
def binarize_backward_kernel(
    grad,  # (count,) contiguous, like x and out
    x,
    out,
    count,
    KIND: tl.constexpr,  # index into SURROGATES
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(grad + at, inside, other=0).to(WIDE)
    logit = tl.load(x + at, inside, other=0).to(WIDE)
    if KIND == 2:
        distance = _distance_to_one(logit)
        g = g * distance * (2 - distance)
    if KIND == 1:
        g = g * tl.where(tl.abs(logit) > 1, 0.0, tl.where(logit == logit, 1.0, logit))
    tl.store(out + at, g, inside)


@triton.jit
def pack_bits_kernel(
    codes,  # (n, d)
    words,  # (n, width) contiguous
    n,
    d,
    width,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1).to(tl.int64)
    bit = tl.arange(0, 64)
    column = word * 64 + bit
    inside = (row < n)[:, None] & (column < d)[None, :]
    at = row[:, None] * row_stride + column[None, :] * column_stride
    code = tl.load(codes + at, inside, other=0)
    value = tl.sum((code.to(tl.float32) > 0).to(tl.int64) << bit[None, :].to(tl.int64), 1)
    tl.store(words + row * width + word, value, row < n)


@triton.jit
def unpack_bits_kernel(
    words,  # (n, width)
    codes,  # (n, d) contiguous
    count,  # n * d
    d,
    row_stride,
    column_stride,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    row, column = at // d, at % d
    word = tl.load(words + row * row_stride + (column // 64) * column_stride, inside, other=0)
    tl.store(codes + at, 2.0 * ((word >> (column % 64)) & 1) - 1.0, inside)


@triton.jit
def binary_moments_kernel(
    words,  # (n, ceil(d / 64))
    both,  # (d, d) int64, zero at the start: codes with +1 at i and at j
    n,
    d,
    row_stride,
    column_stride,
    rows_per_program,
    DEPTH: tl.constexpr,
):
    block_i = tl.program_id(0).to(tl.int64)  # one word of columns
    block_j = tl.program_id(1).to(tl.int64)
    if block_i > block_j:
        return
    bit = tl.arange(0, 64)
    first = tl.program_id(2).to(tl.int64) * rows_per_program
    last = tl.minimum(first + rows_per_program, n)
    count = tl.zeros((64, 64), tl.int32)
    for start in range(first, last, DEPTH):
        row = start + tl.arange(0, DEPTH)
        word_i = tl.load(words + row * row_stride + block_i * column_stride, row < last, other=0)
        word_j = tl.load(words + row * row_stride + block_j * column_stride, row < last, other=0)
        bits_i = ((word_i[None, :] >> bit[:, None].to(tl.int64)) & 1).to(tl.int8)
        bits_j = ((word_j[:, None] >> bit[None, :].to(tl.int64)) & 1).to(tl.int8)
        count = tl.dot(bits_i, bits_j, count, out_dtype=tl.int32)
    i = block_i * 64 + bit
    j = block_j * 64 + bit
    inside = (i < d)[:, None] & (j < d)[None, :]
    # Integer additions commute, so the order of the programs does not show in the result.
    at = i[:, None].to(tl.int64) * d + j[None, :]
    tl.atomic_add(both + at, count.to(tl.int64), inside)
    if block_i != block_j:
        mirrored = i[:, None] + j[None, :].to(tl.int64) * d
        tl.atomic_add(both + mirrored, count.to(tl.int64), inside)


def binarize(x: Tensor, surrogate: str) -> tuple[Tensor, Tensor]:
    d = x.shape[-1]
    x = x.detach().contiguous()
    codes = torch.empty_like(x)
    precision = torch.promote_types(x.dtype, torch.float32)
    error = torch.empty(x.shape[:-1], dtype=precision, device=x.device)
    n = error.numel()
    columns = min(1024, triton.next_power_of_2(max(d, 16)))
    rows = max(1, 2048 // columns)
    if n:
        with torch.cuda.device_of(x):
            binarize_kernel[(triton.cdiv(n, rows),)](
                x,
                codes,
                error,
                n,
                d,
                TANH=surrogate == "tanh",
                WIDE=wide(x.dtype),
                ROWS=rows,
                COLUMNS=columns,
                **OPTIONS,
            )
    return codes, error


def binarize_backward(grad: Tensor, x: Tensor, surrogate: str) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    run_on_elements(binarize_backward_kernel, (grad, x), (out,), KIND=SURROGATES.index(surrogate))
    return out


def pack_bits(codes: Tensor) -> Tensor:
    n, d = codes.shape
    codes, width, rows = codes.detach(), -(-d // 64), 16
    words = torch.empty(n, width, dtype=torch.int64, device=codes.device)
    if words.numel():
        with torch.cuda.device_of(codes):
            pack_bits_kernel[(triton.cdiv(n, rows), width)](
                codes,
                words,
                n,
                d,
                width,
                *codes.stride(),
                ROWS=rows,
                **OPTIONS,
            )
    return words


def unpack_bits(words: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    codes = torch.empty(words.shape[0], d, dtype=dtype, device=words.device)
    if codes.numel():
        with torch.cuda.device_of(words):
            unpack_bits_kernel[(triton.cdiv(codes.numel(), 1024),)](
                words,
                codes,
                codes.numel(),
                d,
                *words.stride(),
                BLOCK=1024,
                **OPTIONS,
            )
    return codes


def binary_moments(words: Tensor, d: int) -> tuple[Tensor, Tensor]:
    n = words.shape[0]
    both = torch.zeros(d, d, dtype=torch.int64, device=words.device)
    rows_per_program = 4096  # pairs of words alone leave a GPU idle at small d
    if n and d:
        blocks = triton.cdiv(d, 64)
        with torch.cuda.device_of(words):
            binary_moments_kernel[(blocks, blocks, triton.cdiv(n, rows_per_program))](
                words,
                both,
                n,
                d,
                *words.stride(),
                rows_per_program,
                DEPTH=64,
                **OPTIONS,
            )
    ones = both.diagonal().clone()
    return ones, n - ones[:, None] - ones[None, :] + 2 * both
