"""Triton kernels of the activation family; `fastlatent.ops.activation` is the definition."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlatent.ops.activation import dense, flat, ordered
from fastlatent.ops.logistic_triton import _exp, _one_minus_decay

# Fused multiply-add is named because Triton's default for it changes between versions.
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True, "num_warps": 4}
_BLOCK = 1024


@triton.jit
def elu_kernel(
    x,  # (count,), like y
    y,
    count,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    u = tl.load(x + at, inside, other=0).to(WIDE)
    depth = tl.where(u < 0, tl.where(u < -64, 64.0, -u), u * 0)  # e^-64 rounds away
    value = tl.where(u > 0, u, -_one_minus_decay(depth, _exp(-depth, WIDE), WIDE))
    tl.store(y + at, value, inside)


@triton.jit
def elu_backward_kernel(
    grad,  # (count,), like y and out
    y,
    out,
    count,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(grad + at, inside, other=0).to(WIDE)
    value = tl.load(y + at, inside, other=0).to(WIDE)
    tl.store(out + at, g * tl.where(value > 0, 1.0, value + 1.0), inside)


def elu(x: Tensor) -> Tensor:
    x = dense(x)
    y = torch.empty_like(x)
    return _launch(elu_kernel, flat(x), y)


def elu_backward(grad: Tensor, y: Tensor) -> Tensor:
    y = dense(y)
    out = torch.empty_like(y)
    return _launch(elu_backward_kernel, flat(ordered(grad, y)), flat(y), out)


def _launch(kernel: Any, *tensors: Tensor) -> Tensor:
    """Runs a kernel on vectors; the last tensor takes its results."""
    *vectors, out = tensors
    if out.numel():
        with torch.cuda.device_of(out):
            kernel[(triton.cdiv(out.numel(), _BLOCK),)](
                *vectors,
                flat(out),
                out.numel(),
                WIDE=tl.float64 if out.dtype == torch.float64 else tl.float32,
                BLOCK=_BLOCK,
                **_OPTIONS,
            )
    return out


def _signatures() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    for p, wide in {"*fp16": 32, "*bf16": 32, "*fp32": 32, "*fp64": 64}.items():
        constants = {"WIDE": tl.float64 if wide == 64 else tl.float32, "BLOCK": _BLOCK}
        yield "elu", elu_kernel, {"x": p, "y": p, "count": "i32"}, constants
        types = {"grad": p, "y": p, "out": p, "count": "i32"}
        yield "elu_backward", elu_backward_kernel, types, constants


SIGNATURES = tuple(_signatures())
"""Op, kernel, argument types and constants of every variant: what `triton.compile` needs."""
