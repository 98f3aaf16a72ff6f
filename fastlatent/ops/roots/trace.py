"""tr (A B)^(1/2) of positive semi-definite matrices: what a Frechet distance needs of them.

The eigenvalues of A B are those of C C^T, C = V^T W, for any factors A = V V^T and B = W W^T, so
the trace is the sum of the singular values of C: never complex and never negative. With C = P S Q^T
the gradients are

    dA: 1/2 (W Q) S^-1 (W Q)^T,    dB: 1/2 (V P) S^-1 (V P)^T,

half the matrices of the optimal transport maps between N(0, A) and N(0, B) (I. Olkin,
F. Pukelsheim, "The distance between two random vectors with given dispersion matrices", Linear
Algebra and its Applications 48, 1982).
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import register
from fastlatent.ops.roots.factors import EPS, Factor, factor
from fastlatent.ops.roots.matrices import DTYPES, shape_of, whole, with_nan
from fastlatent.ops.roots.nuclear import Nuclear, Route, nuclear_norm_of_product
from fastlatent.ops.roots.square_root import ORDER, Eigen, cut, differentiable_root, largest, psd


class Diagnostics(NamedTuple):
    """How a trace was found."""

    route: Route
    rank: tuple[int, int]  # of a and of b; of a batch the largest
    condition: Tensor  # (...): largest over smallest singular value of C; NaN by the polar route
    bound: Tensor  # (...): on the error by rounding: proven by the polar route, else an estimate


def _reference(a: Tensor, b: Tensor) -> Tensor:
    (clean_a, clean_b), bad = whole(a, b)
    outside = Eigen(clean_b).null(b.dtype)
    inside = clean_b - outside @ (clean_b - clean_b.detach()) @ outside
    root = differentiable_root(clean_a, a.dtype)
    trace = _trace(differentiable_root(root @ inside @ root, a.dtype))
    value = torch.linalg.svdvals(root.detach() @ Eigen(clean_b).root()).sum(-1)
    return with_nan(value + (trace - trace.detach()), bad).to(a.dtype)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    (clean_a, clean_b), bad = whole(a, b)
    found, _, _ = _solve(clean_a, clean_b, a.dtype)
    return with_nan(found.value, bad).to(a.dtype)


def _solve(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Nuclear, Factor, Factor]:
    v, w = factor("trace_sqrtm", "a", a, dtype), factor("trace_sqrtm", "b", b, dtype)
    return nuclear_norm_of_product(v, w, _trace(a) + _trace(b)), v, w


def _trace(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape in [(2, 3), (0, 3), (3, 40)]:
        a = psd(shape, shape[-1], device, dtype)
        yield a, psd(shape, shape[-1], device, dtype, seed=1)
    yield torch.eye(2, device=device, dtype=dtype).mT, psd((2,), 2, device, dtype)


def _backward_reference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    (clean_a, clean_b), bad = whole(a, b)

    def gradient(of: Tensor, other: Tensor) -> Tensor:
        root = differentiable_root(other, a.dtype)
        middle = differentiable_root(root @ of @ root, a.dtype)
        whole_block = root @ _inverse(middle, a.dtype) @ root / 2
        outside = Eigen(of).null(a.dtype)
        return whole_block - outside @ whole_block @ outside

    grads = gradient(clean_a, clean_b), gradient(clean_b, clean_a)
    return with_nan(grads[0], bad).to(a.dtype), with_nan(grads[1], bad).to(b.dtype)


def _inverse(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The pseudo-inverse of a PSD matrix, with its derivatives up to ORDER within the range."""
    eigen = Eigen(t)
    kept = eigen.values > cut(eigen.values.clamp_min(0), dtype)
    inverse = torch.where(kept, 1 / eigen.values, 0)
    start = (eigen.vectors * inverse[..., None, :]) @ eigen.vectors.mT
    x = start
    for _ in range(ORDER):
        step = start - start @ t @ x
        x = x + (step - step.detach())
    return x


def _backward_kernel(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    (clean_a, clean_b), bad = whole(a, b)
    v, w = (factor("trace_sqrtm", *named, a.dtype) for named in (("a", clean_a), ("b", clean_b)))
    p, s, q = torch.linalg.svd(v.w.mT @ w.w, full_matrices=False)
    least = a.shape[-1] * EPS * largest(s)
    inverse = torch.where(s > least, s, torch.inf).reciprocal()[..., None, :] / 2

    def gradient(of: Factor, turned: Tensor) -> Tensor:
        block = (turned * inverse) @ turned.mT
        if of.triangular:
            return block
        outside = _outside(of.w)
        return block - outside @ block @ outside

    ga, gb = gradient(v, w.w @ q.mT), gradient(w, v.w @ p)
    return with_nan(ga, bad).to(a.dtype), with_nan(gb, bad).to(b.dtype)


def _outside(w: Tensor) -> Tensor:
    """The projection onto what is orthogonal to the columns of W (..., d, r): (..., d, d)."""
    u, s, _ = torch.linalg.svd(w, full_matrices=False)
    inside = u * (s > w.shape[-2] * EPS * largest(s))[..., None, :]
    return torch.eye(w.shape[-2], dtype=w.dtype, device=w.device) - inside @ inside.mT


_derivative = register(
    "trace_sqrtm_backward(Tensor a, Tensor b) -> (Tensor, Tensor)",
    _backward_reference,
    cases=_cases,
    dtypes=DTYPES,
    linalg=_backward_kernel,
    capturable=False,
)


def trace_sqrtm_gradients(
    a: Tensor,  # (..., d, d), positive semi-definite
    b: Tensor,  # (..., d, d), likewise
) -> tuple[Tensor, Tensor]:  # (..., d, d) each
    """The derivatives of trace_sqrtm by both of its arguments, without autograd."""
    return _derivative(a, b)


def _backward(args: tuple, grads: tuple) -> tuple:
    up = grads[0][..., None, None]
    ga, gb = _derivative(*args)
    return up * ga, up * gb


_op = register(
    "trace_sqrtm(Tensor a, Tensor b) -> Tensor",
    _reference,
    cases=_cases,
    dtypes=DTYPES,
    linalg=_kernel,
    backward=_backward,
    capturable=False,
)


@overload
def trace_sqrtm(a: Tensor, b: Tensor, diagnostics: Literal[False] = False) -> Tensor: ...
@overload
def trace_sqrtm(a: Tensor, b: Tensor, diagnostics: Literal[True]) -> tuple[Tensor, Diagnostics]: ...
@_op.public
def trace_sqrtm(
    a: Tensor,  # (..., d, d), positive semi-definite; the symmetric part counts
    b: Tensor,  # (..., d, d), likewise
    diagnostics: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:  # (...), in a's dtype
    """The trace of (A B)^(1/2), in float64 inside; with `diagnostics` also how it was found.

    Covariances of rank r < d cost an r x r problem. Cholesky factors where they exist, with pivots
    otherwise; then eigenvalues where the condition allows, singular values where it does not, and
    matrix products alone on a GPU while their bound is met. The error stays below 1e-9 of tr A + tr
    B for matrices that count as of full rank. Matrices that are singular up to rounding are
    compared with their factors. The part of a feature's variance that others do not explain counts
    as 0 below (d + 16) eps of the whole, because rounding the entries moves it as far. In a batch
    the same holds for eigenvalues. If it is not 0 in truth, each such feature can cost sqrt((d +
    16) eps) / 2 of tr A + tr B, 3e-8 for d = 2; the rank in `diagnostics` shows it. NaN or infinity
    in a matrix gives NaN.

    Where an argument is singular the derivative along directions that leave its range is infinite:
    that block of its gradient is set to 0. Second derivatives hold for positive definite
    arguments.

    Raises TypeError for dtypes other than float32 and float64 or for unequal ones. Raises
    ValueError for shapes that are not equal and square or, on a CPU, for a matrix further from
    positive semi-definite than rounding in its dtype explains; `project_psd` repairs it.
    """
    _check.tensor("trace_sqrtm", "a", a, None, DTYPES)
    _check.tensor("trace_sqrtm", "b", b, None, DTYPES)
    _check.alike("trace_sqrtm", a=a, b=b)
    shape_of("trace_sqrtm", a=a, b=b)
    if not _check.flag("trace_sqrtm", "diagnostics", diagnostics):
        return _op(a, b)
    with torch.no_grad():
        (clean_a, clean_b), bad = whole(a, b)
        found, v, w = _solve(clean_a, clean_b, a.dtype)
        value = with_nan(found.value, bad).to(a.dtype)
        how = Diagnostics(
            found.route,
            (v.w.shape[-1], w.w.shape[-1]),
            with_nan(found.largest / found.smallest, bad),
            with_nan(found.bound, bad),
        )
    differentiable = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return (_op(a, b) if differentiable else value), how
