"""Argument checks that the family shares."""

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import strict

DTYPES = (torch.float32, torch.float64)
MAX_DEGREE = 31
MAX_POINTS = 2**24


def check_degree(op: str, degree: int) -> int:
    return _check.whole(op, "degree", degree, 1, MAX_DEGREE, f"in 1 to {MAX_DEGREE}")


def check_knots(op: str, knots: Tensor, control: Tensor, degree: int) -> None:
    """Shape, dtype and device; values where the CPU kernels do not look at them."""
    _check.tensor(op, "knots", knots, None, DTYPES)
    _check.alike(op, control=control, knots=knots)
    n, k = control.shape[:2]
    if tuple(knots.shape) not in ((k + degree + 1,), (n, k + degree + 1)):
        raise ValueError(
            f"{op}: knots must have shape ({k + degree + 1},) or ({n}, {k + degree + 1}), control "
            f"points + degree + 1; got {tuple(knots.shape)}"
        )
    if knots.requires_grad:
        raise ValueError(f"{op}: knots must not require gradients; none reach them")
    if knots.is_cuda and strict():
        check_knot_values(op, knots, degree)


def check_knot_values(op: str, knots: Tensor, degree: int) -> None:
    """Waits for the device."""
    ends = knots[..., : degree + 1], knots[..., knots.shape[-1] - degree - 1 :]
    if not all(bool((end == end[..., :1]).all()) for end in ends):
        raise ValueError(
            f"{op}: knots must start and end with {degree + 1} equal ones (clamped, degree + 1)"
        )
    if not bool((knots[..., degree:-degree].diff() > 0).all()):
        raise ValueError(f"{op}: knots must increase between the ends; a doubled knot is refused")
