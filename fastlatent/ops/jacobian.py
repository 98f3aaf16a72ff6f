"""Pushing tangents through a decoder: activations with their derivatives, and Gram matrices.

A decoder alternates linear layers, which map tangents as they map values, with activations. For
the latter the chain rule needs f and f' at the same point, which share their costly part. The
columns of the Jacobian J that come out give the pulled-back metric J^T J (Arvanitidis, Hansen and
Hauberg 2018, arXiv:1710.11379, section 3).
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import register

_DTYPES = (torch.float32, torch.float64)
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


def _derivatives(u: Tensor, kind: str, slope: float) -> Derivatives:
    return _leaky_relu(u, slope) if kind == "leaky_relu" else _ACTIVATIONS[kind](u)


def _channels_last(x: Tensor) -> bool:
    return x.dim() > 2 and x.stride(1) == 1 and x.stride(-1) > 1


def _formatted(a: Tensor, channel: int, like: Tensor) -> Tensor:
    """Dense, with dimension `channel` last in memory where x has its channels there."""
    if _channels_last(like):
        return a.movedim(channel, -1).contiguous().movedim(-1, channel)
    return a.contiguous()


def _along_channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (x.dim() - 2))


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    u = x if scale is None else _along_channels(scale, x) * x
    return u if shift is None else u + _along_channels(shift, x)


def _jvp_reference(
    x: Tensor,
    tangents: Tensor,
    kind: str,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    value, derivative, _ = _derivatives(_affine(x, scale, shift), kind, slope)
    if scale is not None:
        derivative = derivative * _along_channels(scale, x)
    pushed = derivative.unsqueeze(1) * tangents
    return _formatted(value.clone() if value is x else value, 1, x), _formatted(pushed, 2, x)


def _jvp_backward_reference(
    grad_y: Tensor,
    grad_dy: Tensor,
    x: Tensor,
    tangents: Tensor,
    kind: str,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, tangents, scale and shift; of no elements where these are None.

    With u = a x + b and D = sum_k dx_k grad_dy_k, that by u is f'(u) grad_y + f''(u) a D.
    """
    _, first, second = _derivatives(_affine(x, scale, shift), kind, slope)
    factor = torch.ones_like(first) if scale is None else _along_channels(scale, x)
    by_u = first * grad_y
    dot = (tangents * grad_dy).sum(1)
    if second is not None:
        by_u = by_u + second * factor * dot
    by_tangents = (first * factor).unsqueeze(1) * grad_dy
    every = [0, *range(2, x.dim())]  # dimensions that share a channel
    return (
        _formatted(factor * by_u, 1, x),
        _formatted(by_tangents, 2, x),
        x.new_empty(0) if scale is None else (x * by_u + first * dot).sum(every),
        x.new_empty(0) if shift is None else by_u.sum(every),
    )


def _normal(shape: tuple[int, ...], device: str, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    make = torch.Generator().manual_seed(len(shape) + sum(shape))
    return (scale * torch.randn(shape, generator=make, dtype=torch.float64)).to(device, dtype)


def _jvp_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    def case(n: int, t: int, c: int, *spatial: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = _normal((n, c, *spatial), device, dtype, scale=2.0)
        tangents = _normal((n, t, c, *spatial), device, dtype)
        scale = 1 + 0.1 * _normal((c,), device, dtype)
        return x, tangents, scale, 0.3 * _normal((c, 1), device, dtype)[:, 0]

    x, tangents, scale, shift = case(3, 2, 2, 5)
    yield x, tangents, "elu", scale, shift, 0.01
    yield x, tangents, "leaky_relu", None, shift, 0.2
    x, tangents, scale, shift = case(2, 2, 3, 2, 3)
    last = tangents.flatten(0, 1).to(memory_format=torch.channels_last).view_as(tangents)
    yield x.to(memory_format=torch.channels_last), last, "tanh", scale, shift, 0.01
    x, tangents, scale, shift = case(2, 3, 7, 5, 9)
    yield x.to(memory_format=torch.channels_last), tangents, "relu", None, None, 0.01
    x, tangents, scale, shift = case(23, 4, 17)
    yield x, tangents, "silu", scale, None, 0.01
    yield x.abs(), tangents, "sqrt", None, shift.abs(), 0.01
    yield x.abs() + 0.1, tangents, "rsqrt", scale, shift.abs(), 0.01
    for kind in ("gelu", "sigmoid", "selu", "softplus"):
        x, tangents, scale, shift = case(9, 5, 6, 31, 3)
        yield x, tangents, kind, scale, shift, 0.01
    both = _normal((20, 4, 3, 65), device, dtype)
    yield both[:, 0], both[:, 1:], "identity", None, None, 0.01
    yield both[::2, 0, :, ::3], both[::2, 1:, :, ::3], "exp", both[0, 0, :, 0], None, 0.01
    for shape in ((0, 2, 3, 4), (4, 0, 3, 4), (4, 2, 0, 4)):
        x, tangents, scale, shift = case(*shape)
        yield x, tangents, "tanh", scale, shift, 0.01


def _jvp_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for x, tangents, *rest in _jvp_cases(device, dtype):
        grads = [_normal(tuple(a.shape), device, dtype) + 0.1 for a in (x, tangents)]
        yield *grads, x, tangents, *rest


def _jvp_gradients(args: tuple, grads: tuple) -> tuple[Tensor | None, ...]:
    *_, scale, shift, _slope = args
    by_x, by_tangents, by_scale, by_shift = _jvp_backward(*grads, *args)
    return (
        by_x,
        by_tangents,
        None,
        by_scale if scale is not None else None,
        by_shift if shift is not None else None,
        None,
    )


_jvp_backward = register(
    "activation_jvp_backward(Tensor grad_y, Tensor grad_dy, Tensor x, Tensor tangents, str kind, "
    "Tensor? scale, Tensor? shift, float slope) -> (Tensor, Tensor, Tensor, Tensor)",
    _jvp_backward_reference,
    cases=_jvp_backward_cases,
    gradient="true",
    discrete=(False, False, False, False),
    dtypes=_DTYPES,
)

_jvp = register(
    "activation_jvp(Tensor x, Tensor tangents, str kind, Tensor? scale, Tensor? shift, "
    "float slope) -> (Tensor, Tensor)",
    _jvp_reference,
    cases=_jvp_cases,
    gradient="true",
    discrete=(False, False),
    dtypes=_DTYPES,
    backward=_jvp_gradients,
)


@_jvp.public
def activation_jvp(
    x: Tensor,  # (n, c, *spatial), or (n, c)
    tangents: Tensor,  # (n, t, c, *spatial): t tangents at each point
    kind: str,
    scale: Tensor | None = None,  # (c,)
    shift: Tensor | None = None,  # (c,)
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:  # y like x, dy like tangents
    """y = f(scale x + shift) and dy = f'(scale x + shift) scale dx for each tangent dx.

    Scale and shift are one number for each channel, 1 and 0 where they are None: batch norm in
    eval mode has scale = weight / sqrt(running_var + eps) and shift = bias - scale running_mean,
    and the bias of the layer before it belongs in the shift. Tangents are an extra batch to linear
    layers: `tangents.flatten(0, 1)` is (n t, c, *spatial) without a copy, and so is `dy`. Outputs
    are contiguous, or channels last where x is.

    f is "identity", "relu", "leaky_relu" (with `slope` below 0), "elu", "selu", "silu", "gelu" (by
    the error function), "softplus", "tanh", "sigmoid", "exp", "sqrt" or "rsqrt"; f' at a kink is
    that of PyTorch, the one from below. Gradients are exact to any order, by x, tangents, scale and
    shift.

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones, ValueError for
    shapes or devices that do not fit or an unknown kind.
    """
    op = "activation_jvp"
    _check.tensor(op, "x", x, None, _DTYPES)
    _check.tensor(op, "tangents", tangents, x.dim() + 1, _DTYPES)
    _check.choice(op, "kind", kind, KINDS)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be (n, c, *spatial); got shape {tuple(x.shape)}")
    if tangents.shape[:1] != x.shape[:1] or tangents.shape[2:] != x.shape[1:]:
        raise ValueError(
            f"{op}: tangents must be (n, t, c, *spatial) for x of shape {tuple(x.shape)}; "
            f"got {tuple(tangents.shape)}"
        )
    _check.alike(op, x=x, tangents=tangents)
    for name, vector in (("scale", scale), ("shift", shift)):
        if vector is None:
            continue
        _check.tensor(op, name, vector, 1, _DTYPES)
        _check.alike(op, x=x, **{name: vector})
        if vector.shape[0] != x.shape[1]:
            raise ValueError(
                f"{op}: {name} must have one element for each of the {x.shape[1]} channels; "
                f"got {vector.shape[0]}"
            )
    return _jvp(x, tangents, kind, scale, shift, slope)


def _gram_reference(jacobian: Tensor, weight: Tensor | None = None) -> Tensor:
    weighted = jacobian if weight is None else weight.unsqueeze(-1) * jacobian
    gram = jacobian.mT @ weighted
    return ((gram + gram.mT) / 2).contiguous()


def _gram_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    def case(n: int, rows: int, d: int) -> tuple[Tensor, Tensor]:
        return _normal((n, rows, d), device, dtype), _normal((n, rows), device, dtype)

    jacobian, weight = case(3, 7, 2)
    yield jacobian, weight
    yield jacobian.mT.contiguous().mT, weight
    yield jacobian[:1, :1, :1], None
    for shape in ((5, 100, 3), (7, 784, 16), (9, 40, 33)):
        jacobian, weight = case(*shape)
        yield jacobian, None
        yield jacobian.mT.contiguous().mT, weight
    for shape in ((0, 5, 2), (2, 0, 3)):
        yield _normal(shape, device, dtype), None
    wide = _normal((6, 40, 22), device, dtype)
    yield wide[::2, ::3, 1::2], wide[1::2, ::3, 0]
    yield wide[:, :, :10].mT, wide[:, :10, 0]


def _gram_gradients(args: tuple, grads: tuple) -> tuple[Tensor, Tensor | None]:
    """With S = (G + G^T) / 2 for the gradient G: 2 diag(w) J S, and j^T S j for each row j."""
    (jacobian, weight), (grad,) = args, grads
    symmetric = (grad + grad.mT) / 2
    # In the memory order of the Jacobian, which its own gradient goes through next.
    turned = jacobian.stride(-1) != 1
    pushed = (symmetric @ jacobian.mT).mT if turned else jacobian @ symmetric
    if weight is None:
        return 2 * pushed, None
    return 2 * weight.unsqueeze(-1) * pushed, (jacobian * pushed).sum(-1)


_gram = register(
    "jacobian_gram(Tensor jacobian, Tensor? weight) -> Tensor",
    _gram_reference,
    cases=_gram_cases,
    gradient="true",
    dtypes=_DTYPES,
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

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones, ValueError for
    shapes or devices that do not fit.
    """
    op = "jacobian_gram"
    _check.tensor(op, "jacobian", jacobian, 3, _DTYPES)
    if weight is not None:
        _check.tensor(op, "weight", weight, 2, _DTYPES)
        _check.alike(op, jacobian=jacobian, weight=weight)
        if weight.shape != jacobian.shape[:2]:
            raise ValueError(
                f"{op}: weight must be (n, D) = {tuple(jacobian.shape[:2])}; "
                f"got {tuple(weight.shape)}"
            )
    return _gram(jacobian, weight)
