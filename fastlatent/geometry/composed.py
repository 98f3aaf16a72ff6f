"""Operations as derivatives of derivatives need them: made of others, and in full precision.

The derivative that forward mode takes of a normalisation over features has no gradient of its own,
or a wrong one, in PyTorch; those of what it is made of have the right one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Differentiable(TorchFunctionMode):
    """Takes these operations in place of PyTorch's, wherever a module or function calls them.

    Where a decoder turns autocast on by itself, all of them are carried out without.
    """

    def __init__(self, device: str):
        super().__init__()
        self._device = device

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        function = _COMPOSED.get(function, function)
        if not torch.is_autocast_enabled(self._device):
            return function(*args, **(kwargs or {}))
        with torch.autocast(self._device, enabled=False):
            return function(*args, **(kwargs or {}))


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    sizes = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    y = _standardised(input, tuple(range(-len(sizes), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    y = _standardised(input, tuple(range(2, input.dim())), eps)
    spread = (-1, *[1] * (input.dim() - 2))
    y = y if weight is None else y * weight.view(spread)
    return y if bias is None else y + bias.view(spread)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return (input / 6 + 0.5).clamp(0, 1)


_COMPOSED: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.glu: _glu,
    F.hardsigmoid: _hardsigmoid,
}
