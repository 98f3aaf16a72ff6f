"""Gram matrices of Jacobians: pulled-back metrics."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import register, threads
from fastlatent.ops.jacobian.cases import DTYPES, normal


def _gram_reference(jacobian: Tensor, weight: Tensor | None = None) -> Tensor:
    weighted = jacobian if weight is None else weight.unsqueeze(-1) * jacobian
    gram = jacobian.mT @ weighted
    return ((gram + gram.mT) / 2).contiguous()


def _gram_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    def case(n: int, rows: int, d: int) -> tuple[Tensor, Tensor]:
        return normal((n, rows, d), device, dtype), normal((n, rows), device, dtype)

    jacobian, weight = case(3, 7, 2)
    yield jacobian, weight
    yield jacobian.mT.contiguous().mT, weight
    yield jacobian[:1, :1, :1], None
    for shape in ((5, 100, 3), (7, 784, 16), (9, 40, 33)):
        jacobian, weight = case(*shape)
        yield jacobian, None
        yield jacobian.mT.contiguous().mT, weight
    for shape in ((0, 5, 2), (2, 0, 3)):
        yield normal(shape, device, dtype), None
    wide = normal((6, 40, 22), device, dtype)
    yield wide[::2, ::3, 1::2], wide[1::2, ::3, 0]
    yield wide[:, :, :10].mT, wide[:, :10, 0]


def _gram_cpp(core: Any, jacobian: Tensor, weight: Tensor | None) -> Tensor:
    n, _, d = jacobian.shape
    gram = jacobian.new_empty(n, d, d)
    weight = jacobian.new_empty(0) if weight is None else weight.contiguous()
    core.jacobian_gram(jacobian, weight, gram, threads())
    return gram


def _gram_gradients(args: tuple, grads: tuple) -> tuple[Tensor, Tensor | None]:
    """With S = G + G^T for the gradient G: diag(w) J S, and j^T S j / 2 for each row j of J."""
    (jacobian, weight), (grad,) = args, grads
    both = grad + grad.mT
    # In the memory order of the Jacobian, which its own gradient goes through next.
    turned = jacobian.stride(-1) != 1
    pushed = (both @ jacobian.mT).mT if turned else jacobian @ both
    if weight is None:
        return pushed, None
    return weight.unsqueeze(-1) * pushed, (jacobian * pushed).sum(-1) / 2


_gram = register(
    "jacobian_gram(Tensor jacobian, Tensor? weight) -> Tensor",
    _gram_reference,
    cases=_gram_cases,
    dtypes=DTYPES,
    cpp=_gram_cpp,
    triton="jacobian_triton",
    backward=_gram_gradients,
)


@_gram.public
def jacobian_gram(
    jacobian: Tensor,  # (n, D, d)
    weight: Tensor | None = None,  # (n, D)
) -> Tensor:  # (n, d, d), exactly symmetric
    """J^T J, or J^T diag(w) J, of each Jacobian.

    Meant for D much larger than d. Tangents (n, d, D) are Jacobians as `tangents.mT`, without a
    copy. Weights may have any sign; only non-negative ones make the result positive semi-definite.

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones. Raises
    ValueError for shapes or devices that do not fit.
    """
    op = "jacobian_gram"
    _check.tensor(op, "jacobian", jacobian, 3, DTYPES)
    if weight is not None:
        _check.tensor(op, "weight", weight, 2, DTYPES)
        _check.alike(op, jacobian=jacobian, weight=weight)
        if weight.shape != jacobian.shape[:2]:
            raise ValueError(
                f"{op}: weight must be (n, D) = {tuple(jacobian.shape[:2])}; "
                f"got {tuple(weight.shape)}"
            )
    return _gram(jacobian, weight)
