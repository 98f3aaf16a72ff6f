"""Activations.

ELU is x where x > 0 and e^x - 1 below (D.-A. Clevert et al., ICLR 2016). Its derivative is known
from its value, 1 above 0 and y + 1 below, so that nothing but the value is kept for the backward
pass, which the next layer keeps anyway.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._elementwise import dense, elementwise
from fastlatent.ops._register import laid_out, register


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    def normal(*shape: int) -> Tensor:
        make = torch.Generator().manual_seed(sum(shape))
        return (2 * torch.randn(shape, generator=make, dtype=torch.float64)).to(device, dtype)

    for shape in [(64, 64), (3, 1), (2, 3, 5, 7), (4, 1000), (0, 8), (200,)]:
        yield (normal(*shape),)
    wide = normal(9, 130)
    yield (wide[:, ::2],)
    yield (wide.t(),)
    yield (normal(6, 5).t(),)
    yield (normal(2, 3, 4, 5).to(memory_format=torch.channels_last),)
    tiny = torch.finfo(dtype).tiny
    edges = [0.0, -0.0, tiny, -tiny, 1.0, -1.0, 30.0, -30.0, 1e4, -1e4]
    yield (torch.tensor(60 * edges, dtype=torch.float64).to(device, dtype),)  # has no derivative


def _backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for (x,) in _cases(device, dtype):
        grad = torch.linspace(-2, 2, x.numel(), dtype=torch.float64).view(x.shape)
        yield grad.to(device, dtype), x


def _elu_reference(x: Tensor) -> Tensor:
    return F.elu(dense(x))


def _elu_backward_reference(grad: Tensor, y: Tensor) -> Tensor:
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    slope = torch.where(wide > 0, torch.ones_like(wide), wide + 1)
    return laid_out(slope * grad, dense(y))


def _elu_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for grad, x in _backward_cases(device, dtype):
        yield grad, F.elu(x)


_elu_backward = register(
    "elu_backward(Tensor grad, Tensor y) -> Tensor",
    _elu_backward_reference,
    cases=_elu_backward_cases,
    elementwise=True,
    cpp=elementwise("elu_backward"),
)

_elu = register(
    "elu(Tensor x) -> Tensor",
    _elu_reference,
    cases=_cases,
    elementwise=True,
    cpp=elementwise("elu"),
    backward=lambda outputs, grads: (_elu_backward(grads[0], *outputs),),
    from_outputs=True,
)


@_elu.public
def elu(
    x: Tensor,  # (...), at least one dimension
) -> Tensor:  # like x, contiguous or channels last
    """x where x > 0, e^x - 1 below.

    `torch.nn.functional.elu` at alpha = 1; only the value is kept for the backward pass. Its kernel
    is for CPUs; on a GPU it is PyTorch's own.

    Raises TypeError for a dtype other than float16, bfloat16, float32 and float64, ValueError for a
    scalar.
    """
    _check.tensor("elu", "x", x, None, _check.FLOATING)
    return _elu(x)
