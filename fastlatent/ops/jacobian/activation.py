"""Activations applied to values and their tangents."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import register, threads
from fastlatent.ops.jacobian.cases import DTYPES, normal
from fastlatent.ops.jacobian.kinds import KINDS, derivatives


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
    value, derivative, _ = derivatives(_affine(x, scale, shift), kind, slope)
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
    _, first, second = derivatives(_affine(x, scale, shift), kind, slope)
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


def _jvp_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    def case(n: int, t: int, c: int, *spatial: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = normal((n, c, *spatial), device, dtype, scale=2.0)
        tangents = normal((n, t, c, *spatial), device, dtype)
        scale = 1 + 0.1 * normal((c,), device, dtype)
        return x, tangents, scale, 0.3 * normal((c, 1), device, dtype)[:, 0]

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
    both = normal((20, 4, 3, 65), device, dtype)
    yield both[:, 0], both[:, 1:], "identity", None, None, 0.01
    yield both[::2, 0, :, ::3], both[::2, 1:, :, ::3], "exp", both[0, 0, :, 0], None, 0.01
    for shape in ((0, 2, 3, 4), (4, 0, 3, 4), (4, 2, 0, 4)):
        x, tangents, scale, shift = case(*shape)
        yield x, tangents, "tanh", scale, shift, 0.01


def _jvp_backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for x, tangents, *rest in _jvp_cases(device, dtype):
        grads = [normal(tuple(a.shape), device, dtype) + 0.1 for a in (x, tangents)]
        yield *grads, x, tangents, *rest


def _flat(a: Tensor, channel: int, like: Tensor) -> Tensor:
    """(..., c, *spatial) as (..., l), in the memory order of the outputs."""
    if _channels_last(like):
        a = a.movedim(channel, -1)
    flat = a.flatten(channel)
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _each_element(vector: Tensor | None, x: Tensor, missing: float) -> Tensor:
    """(c,) as (l,), in the order of `_flat`."""
    shape = x.shape[1:]
    if vector is None:
        return x.new_full((shape.numel(),), missing)
    spread = _along_channels(vector, x).expand(shape)
    return (spread.movedim(0, -1) if _channels_last(x) else spread).flatten().contiguous()


def _activated(
    x: Tensor, tangents: Tensor, kind: str, scale: Tensor | None, shift: Tensor | None, slope: float
) -> tuple:
    """The arguments as the core takes them."""
    return (
        _flat(x, 1, x),
        _flat(tangents, 2, x),
        KINDS.index(kind),
        _each_element(scale, x, 1),
        _each_element(shift, x, 0),
        slope,
    )


def _empty(a: Tensor, channel: int, like: Tensor) -> Tensor:
    if _channels_last(like):
        shape = a.movedim(channel, -1).shape
        return a.new_empty(shape).movedim(-1, channel)
    return a.new_empty(a.shape)


def _jvp_cpp(core: Any, x: Tensor, tangents: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y, dy = _empty(x, 1, x), _empty(tangents, 2, x)
    core.activation_jvp(*_activated(x, tangents, *rest), _flat(y, 1, x), _flat(dy, 2, x), threads())
    return y, dy


def _jvp_backward_cpp(
    core: Any, grad_y: Tensor, grad_dy: Tensor, x: Tensor, tangents: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, scale, shift, _ = rest
    by_x, by_tangents = _empty(x, 1, x), _empty(tangents, 2, x)
    by_scale, by_shift = (x.new_empty(0 if v is None else v.shape) for v in (scale, shift))
    n, elements = x.shape[0], x.shape[1:].numel()
    needed = core.activation_jvp_scratch(n, elements) if by_scale.numel() + by_shift.numel() else 0
    core.activation_jvp_backward(
        _flat(grad_y, 1, x),
        _flat(grad_dy, 2, x),
        *_activated(x, tangents, *rest),
        _flat(by_x, 1, x),
        _flat(by_tangents, 2, x),
        by_scale,
        by_shift,
        1 if _channels_last(x) else x.shape[2:].numel(),
        x.new_empty(needed),
        threads(),
    )
    return by_x, by_tangents, by_scale, by_shift


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
    dtypes=DTYPES,
    cpp=_jvp_backward_cpp,
)

_jvp = register(
    "activation_jvp(Tensor x, Tensor tangents, str kind, Tensor? scale, Tensor? shift, "
    "float slope) -> (Tensor, Tensor)",
    _jvp_reference,
    cases=_jvp_cases,
    gradient="true",
    discrete=(False, False),
    dtypes=DTYPES,
    cpp=_jvp_cpp,
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
    _check.tensor(op, "x", x, None, DTYPES)
    _check.tensor(op, "tangents", tangents, x.dim() + 1, DTYPES)
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
        _check.tensor(op, name, vector, 1, DTYPES)
        _check.alike(op, x=x, **{name: vector})
        if vector.shape[0] != x.shape[1]:
            raise ValueError(
                f"{op}: {name} must have one element for each of the {x.shape[1]} channels; "
                f"got {vector.shape[0]}"
            )
    return _jvp(x, tangents, kind, scale, shift, slope)
