"""Points and derivatives of B-spline curves."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastlatent.ops import _check
from fastlatent.ops._register import register, strict, threads
from fastlatent.ops.spline.arguments import DTYPES, MAX_POINTS, check_degree, check_knots
from fastlatent.ops.spline.cases import normal


def _weights(
    t: Tensor,  # (m,) or (n, m)
    knots: Tensor,  # (k + degree + 1,) or (n, k + degree + 1)
    degree: int,
    order: int,
) -> tuple[Tensor, Tensor]:  # (m,) or (n, m), then with (..., degree + 1)
    """At each t the first control point with influence, and the weights of it and the next ones."""
    knots = knots.detach()
    inner = knots[..., None, degree + 1 : knots.shape[-1] - degree - 1]
    first = (t.unsqueeze(-1) >= inner).sum(-1)
    at = first.unsqueeze(-1) + torch.arange(1, 2 * degree + 1, device=t.device)
    if knots.dim() == 1:
        near = knots[at]
    else:
        near = knots.unsqueeze(1).expand(-1, at.shape[1], -1).gather(-1, at)
    t = t.unsqueeze(-1)
    weights = t - t + 1  # NaN for NaN, at every order
    for s in range(1, degree + 1):
        left, right = near[..., degree - s : degree], near[..., degree : degree + s]
        parts = weights / (right - left)
        if s <= degree - order:
            weights = pad((t - left) * parts, (1, 0)) + pad((right - t) * parts, (0, 1))
        else:
            weights = s * (pad(parts, (1, 0)) - pad(parts, (0, 1)))
    return first, weights


def _reference(control: Tensor, t: Tensor, knots: Tensor, degree: int, order: int) -> Tensor:
    first, weights = _weights(t, knots, degree, order)
    out = control.new_zeros(())
    for j in range(degree + 1):
        if weights.dim() == 2:
            points = control[:, first + j]
        else:
            index = (first + j).unsqueeze(-1).expand(-1, -1, control.shape[2])
            points = control.gather(1, index)
        out = out + weights[..., j, None] * points
    return out.contiguous()


def _backward_reference(grad: Tensor, t: Tensor, knots: Tensor, degree: int, order: int) -> Tensor:
    first, weights = _weights(t, knots, degree, order)
    n, _, d = grad.shape
    out = grad.new_zeros(n, knots.shape[-1] - degree - 1, d)
    for j in range(degree + 1):
        part = weights[..., j, None] * grad
        if weights.dim() == 2:
            out = out.index_add(1, first + j, part)
        else:
            out = out.scatter_add(1, (first + j).unsqueeze(-1).expand_as(part), part)
    return out


def _cpp(core: Any, control: Tensor, t: Tensor, knots: Tensor, degree: int, order: int) -> Tensor:
    out = control.new_empty(control.shape[0], t.shape[-1], control.shape[2])
    _run_cpp(core.bspline, control, t, knots, degree, order, out)
    return out


def _backward_cpp(
    core: Any, grad: Tensor, t: Tensor, knots: Tensor, degree: int, order: int
) -> Tensor:
    out = grad.new_empty(grad.shape[0], knots.shape[-1] - degree - 1, grad.shape[2])
    _run_cpp(core.bspline_backward, grad, t, knots, degree, order, out)
    return out


def _run_cpp(
    function: Callable[..., None],
    points: Tensor,
    t: Tensor,
    knots: Tensor,
    degree: int,
    order: int,
    out: Tensor,
) -> None:
    shared = t.dim() == knots.dim() == 1
    scratch = points.new_empty((t.shape[-1] + 63) * (degree + 3) if shared else 0)
    points, t, knots = points.contiguous(), t.contiguous(), knots.contiguous()
    function(points, t, knots, degree, order, scratch, out, threads())


def _slope(
    grad: Tensor, control: Tensor, t: Tensor, knots: Tensor, degree: int, order: int
) -> Tensor:
    """The gradient of <grad, bspline> by t, in the shape of t."""
    if order == degree:
        return torch.zeros_like(t)
    slope = (grad * _op(control, t, knots, degree, order + 1)).sum(-1)
    return slope.sum(0) if t.dim() == 1 else slope


def _of_curve(args: tuple, grads: tuple) -> tuple:
    control, t, *rest = args
    return (
        _adjoint(grads[0], t, *rest) if control.requires_grad else None,
        _slope(grads[0], control, t, *rest) if t.requires_grad else None,
    )


def _of_adjoint(args: tuple, grads: tuple) -> tuple:
    """<grads, B^T grad> = <grad, B grads>: the curve whose control points are `grads`."""
    grad, t, *rest = args
    return (
        _op(grads[0], t, *rest) if grad.requires_grad else None,
        _slope(grad, grads[0], t, *rest) if t.requires_grad else None,
    )


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for n, k, m, d, degree, order, own in [
        (3, 6, 5, 2, 3, 0, ""),
        (2, 5, 4, 3, 3, 1, "t knots"),
        (2, 7, 6, 2, 2, 2, "knots"),
        (3, 3, 5, 1, 1, 0, "t"),
        (1, 4, 7, 2, 3, 2, ""),
        (2, 9, 5, 2, 5, 4, "t"),
        (2, 12, 6, 2, 9, 1, "knots"),
        (17, 20, 64, 2, 3, 0, ""),
        (3, 20, 64, 16, 3, 1, ""),
        (18, 12, 15, 33, 3, 0, ""),
        (17, 9, 31, 5, 4, 0, "t"),
        (17, 8, 17, 11, 2, 1, "t knots"),
        (2, 300, 70, 7, 3, 3, ""),
        (2, 33, 3, 4, 31, 0, ""),
        (0, 5, 3, 2, 3, 0, ""),
        (2, 5, 0, 2, 3, 0, "t"),
        (2, 5, 3, 0, 3, 0, ""),
    ]:
        t, knots = _places(n, k, m, degree, own, device, dtype)
        yield normal((n, k, d), device, dtype), t, knots, degree, order
    t, knots = _places(6, 12, 10, 3, "t knots", device, dtype)
    wide = normal((8, 12, 6), device, dtype)
    yield wide.permute(2, 1, 0), t.t().contiguous().t()[:, ::2], knots, 3, 0
    yield wide[::3, ::2, ::2], t[0, ::2], uniform_knots(6, 3, dtype, device), 3, 1


def _places(
    n: int, k: int, m: int, degree: int, own: str, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sorted t and distinct knots in [0, 1], both ends among the t where there are many."""
    make = torch.Generator().manual_seed(n + k + m + degree)
    steps = torch.rand(n, k - degree, generator=make, dtype=torch.float64) + 0.5
    inner = (steps.cumsum(-1) / steps.sum(-1, keepdim=True))[:, :-1]
    knots = pad(pad(inner, (degree + 1, 0)), (0, degree + 1), value=1.0)
    t = torch.rand(n, m, generator=make, dtype=torch.float64).sort(-1).values
    if m > 30:
        t[:, 0], t[:, -1] = 0, 1
    knots = knots if "knots" in own else uniform_knots(k, degree, torch.float64)
    t = t if "t" in own.split() else torch.linspace(0, 1, m + 2, dtype=torch.float64)[1:-1]
    return t.to(device, dtype), knots.to(device, dtype)


def _backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for control, t, knots, degree, order in _cases(device, dtype):
        n, _, d = control.shape
        yield normal((n, t.shape[-1], d), device, dtype), t, knots, degree, order
    t, knots = _places(6, 12, 5, 3, "", device, dtype)
    yield normal((2, 5, 6), device, dtype).permute(2, 1, 0), t, knots, 3, 0


_adjoint = register(
    "bspline_backward(Tensor grad, Tensor t, Tensor knots, int degree, int order) -> Tensor",
    _backward_reference,
    cases=_backward_cases,
    constants=(2,),
    dtypes=DTYPES,
    cpp=_backward_cpp,
    triton="spline_triton",
    backward=_of_adjoint,
)

_op = register(
    "bspline(Tensor control, Tensor t, Tensor knots, int degree, int order) -> Tensor",
    _reference,
    cases=_cases,
    constants=(2,),
    dtypes=DTYPES,
    cpp=_cpp,
    triton="spline_triton",
    backward=_of_curve,
)


@_op.public
def bspline(
    control: Tensor,  # (n, k, d)
    t: Tensor,  # (m,), shared by all curves, or (n, m)
    knots: Tensor | None = None,  # (k + degree + 1,), shared, or (n, k + degree + 1)
    degree: int = 3,
    order: int = 0,
) -> Tensor:  # (n, m, d)
    """Points of B-spline curves (order 0) or their derivatives by t, with gradients.

    Knots are clamped and distinct between the ends; None means `uniform_knots`. Gradients reach the
    control points and t, and with them any higher derivative. The first and the last knot bound t;
    at an inner knot the derivative of order `degree`, which jumps there, is that of the right side.

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones. Raises
    ValueError for shapes or devices that do not fit, degree outside 1 ... 31, order outside 0 ...
    degree, knots that require gradients and, on CPU or under FASTLATENT_STRICT=1, for knots that
    are not clamped or not distinct and for t outside them.
    """
    _check.tensor("bspline", "control", control, 3, DTYPES)
    _check.tensor("bspline", "t", t, None, DTYPES)
    _check.alike("bspline", control=control, t=t)
    degree = check_degree("bspline", degree)
    _check_points("bspline", degree, control.shape[1])
    order = _check.whole("bspline", "order", order, 0, degree, f"in 0 to degree, {degree}")
    if t.dim() > 2 or (t.dim() == 2 and t.shape[0] != control.shape[0]):
        raise ValueError(
            f"bspline: t must have shape (m,) or (n, m) with n = {control.shape[0]} curves; "
            f"got {tuple(t.shape)}"
        )
    if knots is None:
        knots = uniform_knots(control.shape[1], degree, control.dtype, control.device)
    else:
        check_knots("bspline", knots, control, degree)
    if t.is_cuda and strict():
        ends = knots[..., :1], knots[..., -1:]
        if bool(((t < ends[0]) | (t > ends[1])).any()):
            raise ValueError("bspline: t must lie between the first and the last knot")
    return _op(control, t, knots, degree, order)


def uniform_knots(
    k: int,
    degree: int = 3,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:  # (k + degree + 1,)
    """Clamped knots on [0, 1] for k control points, equally spaced between the ends.

    Raises TypeError for a dtype that is not floating or something that is no device. Raises
    ValueError for degree outside 1 ... 31, for fewer than degree + 1 control points and for more
    than 2^24, whose knots float32 could not keep apart.
    """
    degree = check_degree("uniform_knots", degree)
    expectation = f"a whole number of control points, at most 2^24 = {MAX_POINTS:,}"
    k = _check.whole("uniform_knots", "k", k, 0, MAX_POINTS, expectation)
    _check_points("uniform_knots", degree, k)
    if dtype is not None:
        _check.floating_dtype("uniform_knots", "dtype", dtype)
    _check.device("uniform_knots", "device", device)
    between = torch.linspace(0, 1, k - degree + 1, dtype=dtype, device=device)
    return pad(pad(between, (degree, 0)), (0, degree), value=1.0)


def _check_points(op: str, degree: int, k: int) -> None:
    if k < degree + 1:
        raise ValueError(
            f"{op}: a curve of degree {degree} needs at least {degree + 1} control points; got {k}"
        )
