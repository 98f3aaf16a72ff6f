"""The activations, each with its first two derivatives."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Klambauer et al. 2017, arXiv:1706.02515, equation 2 with the constants of its appendix.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# f(u), f'(u) and f''(u), None where that is zero everywhere.
Derivatives = tuple[Tensor, Tensor, Tensor | None]


def _identity(u: Tensor) -> Derivatives:
    return u, torch.ones_like(u), None


def _rectified(u: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """One of two by the sign of u, the second at 0; NaN where u is."""
    return torch.where(u > 0, positive, torch.where(u <= 0, negative, u))


def _relu(u: Tensor) -> Derivatives:
    return _leaky_relu(u, 0.0)


def _leaky_relu(u: Tensor, slope: float) -> Derivatives:
    one = torch.ones_like(u)
    return _rectified(u, u, slope * u if slope else 0 * one), _rectified(u, one, slope * one), None


def _elu(u: Tensor, alpha: float = 1.0, scale: float = 1.0) -> Derivatives:
    below = u.clamp(max=0)  # so that no infinite exponential meets the zero gradient of `where`
    rise = scale * alpha * below.exp()
    value = torch.where(u > 0, scale * u, scale * alpha * below.expm1())
    slope = torch.where(u > 0, torch.full_like(u, scale), rise)
    return value, slope, torch.where(u > 0, torch.zeros_like(u), rise)


def _selu(u: Tensor) -> Derivatives:
    return _elu(u, _SELU_ALPHA, _SELU_SCALE)


def _silu(u: Tensor) -> Derivatives:
    s, slope, curvature = _sigmoid(u)
    assert curvature is not None
    return u * s, s + u * slope, 2 * slope + u * curvature


def _gelu(u: Tensor) -> Derivatives:
    below = torch.special.ndtr(u)
    density = (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi)
    return u * below, below + u * density, density * (2 - u.square())


def _softplus(u: Tensor) -> Derivatives:
    value = u.clamp(min=0) + (-u.abs()).exp().log1p()
    return value, *_sigmoid(u)[:2]


def _tanh(u: Tensor) -> Derivatives:
    value = u.tanh()
    slope = 1 - value.square()
    return value, slope, -2 * value * slope


def _sigmoid(u: Tensor) -> Derivatives:
    value, rest = u.sigmoid(), (-u).sigmoid()
    return value, value * rest, value * rest * (rest - value)


def _exp(u: Tensor) -> Derivatives:
    value = u.exp()
    return value, value, value


def _sqrt(u: Tensor) -> Derivatives:
    value = u.sqrt()
    return value, 0.5 / value, -0.25 / (value * u)


def _rsqrt(u: Tensor) -> Derivatives:
    value = u.rsqrt()
    slope = -0.5 * value / u
    return value, slope, -1.5 * slope / u


_ACTIVATIONS: dict[str, Callable[..., Derivatives]] = {
    "identity": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "exp": _exp,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
}
KINDS = tuple(_ACTIVATIONS)


def derivatives(u: Tensor, kind: str, slope: float) -> Derivatives:
    return _leaky_relu(u, slope) if kind == "leaky_relu" else _ACTIVATIONS[kind](u)
