"""What the Triton kernels of all families share: elementary functions, types and launches."""

# mypy: allow-untyped-defs

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Fused multiply-add is named because Triton's default for it changes between versions.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True, "num_warps": 4}


def wide(dtype: torch.dtype) -> Any:
    """What kernels compute in: float32, or float64 for that."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def run_on_elements(
    kernel: Any,
    inputs: Sequence[Tensor],
    outs: Sequence[Tensor],
    block: int = 1024,
    **constants: Any,
) -> None:
    """Runs a kernel on tensors of one shape, in programs of `block` elements.

    It takes inputs, outputs and their number of elements; WIDE is that of the last input.
    """
    count = outs[0].numel()
    if count:
        vectors = [x.detach().contiguous() for x in inputs]
        constants |= {"WIDE": wide(inputs[-1].dtype), "BLOCK": block}
        with torch.cuda.device_of(outs[0]):
            kernel[(triton.cdiv(count, block),)](*vectors, *outs, count, **constants, **OPTIONS)


@triton.jit
def exp(x, WIDE: tl.constexpr):
    """e^x to 2 units in the last place; the hardware's own loses |x| of them in float32."""
    if tl.float64 == WIDE:
        y = tl.exp(x)
    else:
        # Beyond these every result is 0 or infinite; n must stay finite for r to be a number.
        x = tl.where(x < -150, -150.0, tl.where(x > 150, 150.0, x))
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - n * 0.693145751953125) - n * 1.42860682030941723212e-6
        # 2^n is infinite at n = 128, from x = 88.38 on, where e^x is finite up to 88.72.
        y = tl.exp2(n - 1) * (2 * tl.exp(r))
    return y


@triton.jit
def one_minus_decay(x, decay, WIDE: tl.constexpr):
    """1 - e^-x for x >= 0 and decay = e^-x, with relative accuracy."""
    if tl.float64 == WIDE:
        safe = tl.where((decay == 1) | (x >= 1), 0.5, decay)
        short = tl.where(decay == 1, x, (1 - safe) * x / -tl.log(safe))
    else:
        short = x * mean_decay(x, WIDE)
    return tl.where(x < 1, short, 1 - decay)


@triton.jit
def mean_decay(x, WIDE: tl.constexpr):
    """(1 - e^-x) / x for 0 <= x <= 1."""
    if tl.float64 == WIDE:
        safe = tl.where(x > 0, x, 1.0)
        p = tl.where(x > 0, one_minus_decay(safe, tl.exp(-safe), WIDE) / safe, 1 - x)
    else:
        p = 1.29313878e-4 * x - 1.30171329e-3  # scripts/minimax.py
        p = p * x + 8.27692635e-3
        p = p * x - 4.16478813e-2
        p = p * x + 1.66663766e-1
        p = p * x - 4.99999851e-1
        p = p * x + 1
    return p


@triton.jit
def log1p(x):
    u = 1 + x
    safe = tl.where(u == 1, 2.0, u)
    return tl.where(u == 1, x, tl.log(safe) * x / (safe - 1))


@triton.jit
def tanh(x, WIDE: tl.constexpr):
    """tanh x and its derivative."""
    a = 2 * tl.abs(x)
    e = exp(-a, WIDE)
    t = one_minus_decay(a, e, WIDE) / (1 + e)
    return tl.where(x < 0, -t, t), 4 * e / ((1 + e) * (1 + e))
