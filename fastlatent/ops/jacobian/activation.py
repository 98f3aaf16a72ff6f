"""Activations applied to values and their tangents."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import register, threads
from fastlatent.ops.jacobian.cases import DTYPES, normal
from fastlatent.ops.jacobian.kinds import KINDS, derivatives
from fastlatent.ops.jacobian.layout import Layout


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
    layout = Layout.of(x)
    return layout.dense(value.clone() if value is x else value), layout.dense(pushed)


def _jvp_backward_reference(
    grad_y: Tensor,
    grad_dy: Tensor,
    x: Tensor,
    tangents: Tensor,
    kind: str,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, tangents, scale and shift; the last two empty if None or not `affine`.

    With u = a x + b and D = sum_k dx_k grad_dy_k, that by u is f'(u) grad_y + f''(u) a D.
    """
    _, first, second = derivatives(_affine(x, scale, shift), kind, slope)
    factor = torch.ones_like(first) if scale is None else _along_channels(scale, x)
    by_u = first * grad_y
    if second is not None or affine:
        dot = (tangents * grad_dy).sum(1)
    if second is not None:
        by_u = by_u + second * factor * dot
    by_tangents = (first * factor).unsqueeze(1) * grad_dy
    every = [0, *range(2, x.dim())]  # dimensions that share a channel
    layout = Layout.of(x)
    return (
        layout.dense(factor * by_u),
        layout.dense(by_tangents),
        (x * by_u + first * dot).sum(every) if affine and scale is not None else x.new_empty(0),
        by_u.sum(every) if affine and shift is not None else x.new_empty(0),
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
        yield *grads, x, tangents, *rest, rest[0] != "gelu"


def _activated(
    core: Any,
    layout: Layout,
    n: int,
    x: Tensor,
    tangents: Tensor,
    kind: str,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> tuple:
    """The arguments as the core takes them, with scratch memory for sums over n samples."""
    vectors = [x.new_empty(0) if v is None else v.contiguous() for v in (scale, shift)]
    scratch = x.new_empty(core.activation_jvp_scratch(n, x.shape[1:].numel()))
    rows = layout.rows(x), layout.rows(tangents)
    return *rows, KINDS.index(kind), *vectors, max(1, layout.inner), slope, scratch


def _jvp_cpp(core: Any, x: Tensor, tangents: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    layout = Layout.of(x)
    y, dy = layout.empty(x), layout.empty(tangents)
    inputs = _activated(core, layout, 0, x, tangents, *rest)
    core.activation_jvp(*inputs, layout.rows(y), layout.rows(dy), threads())
    return y, dy


def _jvp_backward_cpp(
    core: Any, grad_y: Tensor, grad_dy: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tangents, kind, scale, shift, slope, affine = rest
    layout = Layout.of(x)
    by_x, by_tangents = layout.empty(x), layout.empty(tangents)
    by_scale, by_shift = (
        x.new_empty(v.shape if affine and v is not None else 0) for v in (scale, shift)
    )
    core.activation_jvp_backward(
        layout.rows(grad_y),
        layout.rows(grad_dy),
        *_activated(core, layout, len(x), x, tangents, kind, scale, shift, slope),
        layout.rows(by_x),
        layout.rows(by_tangents),
        by_scale,
        by_shift,
        threads(),
    )
    return by_x, by_tangents, by_scale, by_shift


def _jvp_gradients(args: tuple, grads: tuple) -> tuple[Tensor | None, ...]:
    *_, scale, shift, _slope = args
    affine = any(v is not None and v.requires_grad for v in (scale, shift))
    by_x, by_tangents, by_scale, by_shift = _jvp_backward(*grads, *args, affine)
    return (
        by_x,
        by_tangents,
        None,
        by_scale if affine and scale is not None else None,
        by_shift if affine and shift is not None else None,
    )


_jvp_backward = register(
    "activation_jvp_backward(Tensor grad_y, Tensor grad_dy, Tensor x, Tensor tangents, str kind, "
    "Tensor? scale, Tensor? shift, float slope, bool affine) -> (Tensor, Tensor, Tensor, Tensor)",
    _jvp_backward_reference,
    cases=_jvp_backward_cases,
    dtypes=DTYPES,
    cpp=_jvp_backward_cpp,
    triton="jacobian_triton",
)

_jvp = register(
    "activation_jvp(Tensor x, Tensor tangents, str kind, Tensor? scale, Tensor? shift, "
    "float slope) -> (Tensor, Tensor)",
    _jvp_reference,
    cases=_jvp_cases,
    dtypes=DTYPES,
    cpp=_jvp_cpp,
    triton="jacobian_triton",
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

    Raises TypeError for dtypes other than float32 and float64, for unequal ones or a slope that is
    no number. Raises ValueError for shapes or devices that do not fit or an unknown kind.
    """
    op = "activation_jvp"
    _check.tensor(op, "x", x, None, DTYPES)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be (n, c, *spatial); got shape {tuple(x.shape)}")
    _check.tensor(op, "tangents", tangents, x.dim() + 1, DTYPES)
    _check.choice(op, "kind", kind, KINDS)
    if tangents.shape[:1] + tangents.shape[2:] != x.shape:
        raise ValueError(
            f"{op}: tangents must be (n, t, c, *spatial) for x of shape {tuple(x.shape)}; "
            f"got {tuple(tangents.shape)}"
        )
    vectors = {"scale": scale, "shift": shift}
    given = {name: vector for name, vector in vectors.items() if vector is not None}
    for name, vector in given.items():
        _check.tensor(op, name, vector, 1, DTYPES)
        if vector.shape[0] != x.shape[1]:
            raise ValueError(
                f"{op}: {name} must have one element for each of the {x.shape[1]} channels; "
                f"got {vector.shape[0]}"
            )
    _check.alike(op, x=x, tangents=tangents, **given)
    number = _check.real(slope)
    if number is None:
        raise TypeError(
            f"{op}: slope must be a number; got {type(slope).__name__} {_check.shown(slope)}"
        )
    return _jvp(x, tangents, kind, scale, shift, number)
