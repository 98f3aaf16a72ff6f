"""Activations of values: the op's fast forward pass with PyTorch's fast backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlatent.ops.jacobian import activation_jvp

_aten = torch.ops.aten

# gradient, y = f(x) -> gradient f'(x), for those whose derivative is cheap given y. By y it is
# exactly 0 far below 0, where e^x is subnormal; such gradients slow convolutions down tenfold.
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elu": lambda g, y: _aten.elu_backward(g, 1.0, 1.0, 1.0, True, y),
    "selu": lambda g, y: _aten.elu_backward(
        g, 1.6732632423543772, 1.0507009873554805, 1.0, True, y
    ),
    "tanh": lambda g, y: _aten.tanh_backward(g, y),
    "sigmoid": lambda g, y: _aten.sigmoid_backward(g, y),
}


def activated(
    x: Tensor,  # (n, l)
    kind: str,
    slope: float,
    function: Callable[[Tensor], Tensor],  # the same in PyTorch
) -> Tensor:  # (n, l)
    """f(x), differentiable to any order."""
    if x.device.type != "cpu":
        return function(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _forward(x, kind, slope)
    return _Activated.apply(x, kind) if kind in _SLOPES else function(x)


def _forward(x: Tensor, kind: str, slope: float = 0.01) -> Tensor:
    none = x.new_empty(len(x), 0, x.shape[1])
    return activation_jvp(x, none, kind, slope=slope)[0]


class _Activated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kind: str) -> Tensor:
        return _forward(x, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        ctx.kind = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return _SLOPES[ctx.kind](gradients[0], y), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        return _SLOPES[ctx.kind](tangents[0], y)
