"""Lengths and energies of polylines: what chords of a curve measure."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import contiguous_rows, register, threads
from fastlatent.ops.spline.arguments import DTYPES
from fastlatent.ops.spline.cases import normal


def _norms(chords: Tensor) -> Tensor:
    """Euclidean norms over the last dimension; the gradient of a norm that is zero is zero."""
    squares = chords.square().sum(-1)
    zero = squares == 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())


def _length_reference(points: Tensor) -> Tensor:
    return _norms(points.diff(dim=1)).sum(-1)


def _energy_reference(points: Tensor) -> Tensor:
    return (points.shape[1] - 1) * points.diff(dim=1).square().sum((1, 2))


def _ends(forces: Tensor) -> Tensor:
    """(n, m - 1, D) pulling each chord's end and pushing its start: the sum at each point."""
    none = forces.new_zeros(forces.shape[0], 1, forces.shape[2])
    return torch.cat([none, forces], 1) - torch.cat([forces, none], 1)


def _length_backward_reference(grad: Tensor, points: Tensor) -> Tensor:
    chords = points.diff(dim=1)
    norms = _norms(chords)
    weights = torch.where(norms == 0, 0, grad[:, None] / torch.where(norms == 0, 1, norms))
    return _ends(weights[..., None] * chords)


def _energy_backward_reference(grad: Tensor, points: Tensor) -> Tensor:
    scale = 2 * (points.shape[1] - 1) * grad
    return _ends(scale[:, None, None] * points.diff(dim=1))


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape in [(3, 5, 4), (2, 1, 3), (4, 2, 1), (70, 33, 31), (40, 9, 203), (1, 200, 1)]:
        yield (normal(shape, device, dtype),)
    for shape in [(0, 5, 3), (2, 3, 0)]:
        yield (normal(shape, device, dtype),)
    wide = normal((6, 8, 5), device, dtype)
    yield (wide.permute(2, 1, 0),)
    yield (wide[::2, 1::2, ::3],)
    still = normal((3, 20, 7), device, dtype)
    still[1] = still[1, :1]
    still[2, 3] = still[2, 2]
    yield (still,)


def _backward_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for (points,) in _cases(device, dtype):
        yield normal(points.shape[:1], device, dtype), points


def _kernel(energy: bool) -> Callable[..., Tensor]:
    def cpp(core: Any, points: Tensor) -> Tensor:
        out = points.new_empty(points.shape[0])
        core.polyline(contiguous_rows(points), energy, out, threads())
        return out

    return cpp


def _backward_kernel(energy: bool) -> Callable[..., Tensor]:
    def cpp(core: Any, grad: Tensor, points: Tensor) -> Tensor:
        out = torch.empty_like(points, memory_format=torch.contiguous_format)
        core.polyline_backward(grad.contiguous(), contiguous_rows(points), energy, out, threads())
        return out

    return cpp


_length_backward = register(
    "polyline_length_backward(Tensor grad, Tensor points) -> Tensor",
    _length_backward_reference,
    cases=_backward_cases,
    dtypes=DTYPES,
    cpp=_backward_kernel(energy=False),
    triton="spline_triton",
)

_length = register(
    "polyline_length(Tensor points) -> Tensor",
    _length_reference,
    cases=_cases,
    dtypes=DTYPES,
    cpp=_kernel(energy=False),
    triton="spline_triton",
    backward=lambda args, grads: (_length_backward(grads[0], *args),),
)

_energy_backward = register(
    "polyline_energy_backward(Tensor grad, Tensor points) -> Tensor",
    _energy_backward_reference,
    cases=_backward_cases,
    dtypes=DTYPES,
    cpp=_backward_kernel(energy=True),
    triton="spline_triton",
)

_energy = register(
    "polyline_energy(Tensor points) -> Tensor",
    _energy_reference,
    cases=_cases,
    dtypes=DTYPES,
    cpp=_kernel(energy=True),
    triton="spline_triton",
    backward=lambda args, grads: (_energy_backward(grads[0], *args),),
)


@_length.public
def polyline_length(
    points: Tensor,  # (n, m, D)
) -> Tensor:  # (n,) in the unit of the points
    """Sums of the m - 1 chords' Euclidean lengths; the gradient of a chord of length 0 is 0.

    Raises TypeError for a dtype other than float32 and float64. Raises ValueError for a wrong
    number of dimensions or for m = 0.
    """
    _check_points("polyline_length", points)
    return _length(points)


@_energy.public
def polyline_energy(
    points: Tensor,  # (n, m, D)
) -> Tensor:  # (n,) in the points' unit squared
    """m - 1 times the sum of the m - 1 chords' squared lengths: the energy of a curve over [0, 1].

    At least the square of the length, and equal to it where all chords are equally long.

    Raises TypeError for a dtype other than float32 and float64. Raises ValueError for a wrong
    number of dimensions or for m = 0.
    """
    _check_points("polyline_energy", points)
    return _energy(points)


def _check_points(op: str, points: Tensor) -> None:
    _check.tensor(op, "points", points, 3, DTYPES)
    if points.shape[1] == 0:
        raise ValueError(f"{op}: points must hold at least one point of each line")
