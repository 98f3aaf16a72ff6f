"""Kernels of ops whose results depend on the elements at their own place alone."""

from typing import Any

import torch
from torch import Tensor

from fastlatent.ops._register import Kernel, threads


def dense(x: Tensor) -> Tensor:
    """x contiguous, or channels last where it has that."""
    if x.dim() != 4 or torch._C._are_functorch_transforms_active():  # which know one order only
        return x.contiguous()
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def in_order(*tensors: Tensor) -> tuple[list[Tensor], Tensor]:
    """The tensors as vectors in one order of memory, and memory for a result in that order.

    The order is that of the last tensor, contiguous or channels last.
    """
    like = dense(tensors[-1])
    laid_out = [
        x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
        for x in (*tensors[:-1], like)
    ]
    return [_flat(x) for x in laid_out], torch.empty_like(like)


def elementwise(op: str) -> Kernel:
    """The formula of that name in csrc/elementwise.simd.cpp, as an op's C++ kernel."""

    def kernel(core: Any, *tensors: Tensor) -> Tensor:
        vectors, out = in_order(*tensors)
        core.elementwise(op, [*vectors, _flat(out)], threads())
        return out

    return kernel


def _flat(x: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory."""
    return x.detach().as_strided((x.numel(),), (1,))
