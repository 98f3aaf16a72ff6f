"""Knot insertion: more control points, the same curve.

With knots tau, degree p and a new knot u, the new control points are (Boehm 1980)

    w_i P_i + (1 - w_i) P_{i-1},    w_i = (u - tau_i) / (tau_{i+p} - tau_i) within [0, 1],

one for each i = 0 ... k, where w_i is 1 for tau_{i+p} <= u and 0 for tau_i > u.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fastlatent.ops import _check
from fastlatent.ops._register import strict
from fastlatent.ops.spline.arguments import DTYPES, MAX_DEGREE, check_degree, check_knots


def insert_knot(
    control: Tensor,  # (n, k, d)
    knots: Tensor,  # (k + degree + 1,), or (n, k + degree + 1)
    u: float | Tensor,  # a number, (r,), or with own knots (n,) or (n, r)
) -> tuple[Tensor, Tensor]:  # (n, k + r, d), knots with r more
    """The same curves over knots that u has joined: Boehm's insertion, differentiable in control.

    A number is inserted into every curve. With shared knots, (r,) holds r knots for all curves;
    with own knots, (n,) holds one for each curve and (n, r) holds r. They may come in any order.
    The degree follows from the shapes.

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones. Raises
    ValueError for shapes or devices that do not fit and, on CPU or under FASTLATENT_STRICT=1, for a
    u that is not strictly between the first and the last knot or is a knot already.
    """
    _check.tensor("insert_knot", "control", control, 3, DTYPES)
    _check.tensor("insert_knot", "knots", knots, None, DTYPES)
    k = control.shape[1]
    degree = knots.shape[-1] - k - 1
    if not 1 <= degree <= min(k - 1, MAX_DEGREE):
        raise ValueError(
            f"insert_knot: knots must be as many as control points + degree + 1, with degree at "
            f"least 1 and less than k = {k} and {MAX_DEGREE + 1}; got {knots.shape[-1]}"
        )
    return _insert("insert_knot", control, knots, degree, u)


def _insert(
    op: str, control: Tensor, knots: Tensor, degree: int, u: float | Tensor
) -> tuple[Tensor, Tensor]:
    check_knots(op, knots, control, degree)
    for one in _columns(op, u, knots).unbind(-1):
        _check_place(op, knots, one)
        control, knots = inserted(control, knots, one)
    return control, knots


def inserted(
    control: Tensor,  # (n, k, d)
    knots: Tensor,  # (k + degree + 1,), or (n, k + degree + 1)
    u: Tensor,  # (), or (n,) with own knots
) -> tuple[Tensor, Tensor]:
    """`insert_knot` of one knot, which may be there already, at most degree - 1 times."""
    weights = _weights(knots, u, knots.shape[-1] - control.shape[1] - 1).unsqueeze(-1)
    control = weights * pad(control, (0, 0, 0, 1)) + (1 - weights) * pad(control, (0, 0, 1, 0))
    return control, torch.cat([knots, u.unsqueeze(-1)], -1).sort(-1).values


def insertion_matrix(
    knots: Tensor,  # (k + degree + 1,), or (n, k + degree + 1)
    u: float | Tensor,  # as for `insert_knot`
    degree: int = 3,
) -> Tensor:  # (k + r, k), or (n, k + r, k)
    """What `insert_knot` multiplies control points by: rows are not negative and add up to 1.

    Raises TypeError for a dtype other than float32 and float64 or for unequal ones. Raises
    ValueError for shapes or devices that do not fit and, on CPU or under FASTLATENT_STRICT=1, for a
    u that is not strictly between the first and the last knot or is a knot already.
    """
    _check.tensor("insertion_matrix", "knots", knots, None, DTYPES)
    degree = check_degree("insertion_matrix", degree)
    k = knots.shape[-1] - degree - 1
    if k < degree + 1 or knots.dim() > 2:
        raise ValueError(
            f"insertion_matrix: knots must have shape (k + degree + 1,) or (n, k + degree + 1) "
            f"with degree in 1 to {MAX_DEGREE} and k > degree; got {tuple(knots.shape)} for degree "
            f"{degree}"
        )
    unit = torch.eye(k, dtype=knots.dtype, device=knots.device)
    if knots.dim() == 1:
        return _insert("insertion_matrix", unit[None], knots, degree, u)[0][0]
    return _insert("insertion_matrix", unit.expand(len(knots), k, k), knots, degree, u)[0]


def _columns(op: str, u: float | Tensor, knots: Tensor) -> Tensor:
    """u as (r,) for shared knots and (n, r) for own ones."""
    if not isinstance(u, Tensor):
        u = torch.tensor(_numbers(op, u), dtype=knots.dtype, device=knots.device)
    if u.dtype == torch.bool or u.is_complex() or u.layout != torch.strided:
        raise TypeError(f"{op}: u must hold real numbers; got {u.dtype}, {u.layout}")
    if u.dim() == 0:
        return u.to(knots).expand(*knots.shape[:-1], 1)
    _check.alike(op, knots=knots, u=u)
    columns = u.unsqueeze(-1) if knots.dim() == 2 and u.dim() == 1 else u
    if columns.dim() != knots.dim() or columns.shape[:-1] != knots.shape[:-1]:
        raise ValueError(
            f"{op}: u must be a number, (r,) with shared knots, or (n,) or (n, r) with own "
            f"ones; got {tuple(u.shape)} with knots {tuple(knots.shape)}"
        )
    return columns


def _numbers(op: str, u: Any) -> Any:
    """A number, or what holds one or several, as nested lists of floats."""
    if isinstance(u, list | tuple) or (isinstance(u, np.ndarray) and u.ndim):
        return [_numbers(op, one) for one in u]
    number = _check.real(u)
    if number is None:
        raise TypeError(f"{op}: u must be a number or a tensor; got {_check.shown(u)}")
    return number


def _check_place(op: str, knots: Tensor, u: Tensor) -> None:
    """Under torch.compile and function transforms, as in other ops, values are not looked at."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if knots.is_cuda and not strict():
        return
    u = u.unsqueeze(-1)
    inside = (u > knots[..., :1]) & (u < knots[..., -1:])
    if not bool((inside & (u != knots).all(-1, keepdim=True)).all()):
        raise ValueError(
            f"{op}: u must lie strictly between the first and the last knot and be none of "
            "them; a doubled knot is refused"
        )


def _weights(knots: Tensor, u: Tensor, degree: int) -> Tensor:
    """w_0 ... w_k: (k + 1,), or (n, k + 1) with own knots."""
    u = u.unsqueeze(-1)
    lower, upper = knots[..., : knots.shape[-1] - degree], knots[..., degree:]
    ratio = (u - lower) / torch.where(upper == lower, 1, upper - lower)
    return torch.where(upper <= u, 1, torch.where(lower > u, 0, ratio))
