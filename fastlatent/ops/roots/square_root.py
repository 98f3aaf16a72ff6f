"""The square root of a positive semi-definite matrix, and the equation that its derivative solves.

The derivative X of R = A^(1/2) along G solves R X + X R = G (N. J. Higham, "Functions of Matrices",
SIAM 2008, section 6.1); in the eigenbasis of R that divides G_ij by r_i + r_j. The equation's
solution is differentiated by solving it again, so derivatives of every order exist.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlatent.ops import _check
from fastlatent.ops._register import register, strict
from fastlatent.ops.roots.matrices import DTYPES, check_psd, shape_of, symmetric, whole, with_nan

ORDER = 2  # of the derivatives that references give


class Eigen:
    """A symmetric matrix (..., d, d) by eigenvalues and eigenvectors, constants to autograd."""

    def __init__(self, a: Tensor):
        self.values, self.vectors = torch.linalg.eigh(a.detach())

    @property
    def roots(self) -> Tensor:
        """(..., d), those of negative eigenvalues 0."""
        return self.values.clamp_min(0).sqrt()

    def root(self) -> Tensor:
        """The square root of the positive part: (..., d, d)."""
        half = self.vectors * self.roots.sqrt()[..., None, :]
        return half @ half.mT

    def sylvester(self, roots: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        """X of R X + X R = G, where R has the eigenvalues `roots`; 0 in its null space."""
        sums = roots[..., :, None] + roots[..., None, :]
        q, least = self.vectors, 2 * cut(roots, dtype)[..., None]
        inverse = torch.where(sums > least, 1 / sums, 0)
        return q @ (inverse * (q.mT @ g @ q)) @ q.mT

    def null(self, dtype: torch.dtype) -> Tensor:
        """The projection (..., d, d) onto what counts as the null space."""
        roots = self.roots
        outside = self.vectors * (roots <= cut(roots, dtype))[..., None, :]
        return outside @ outside.mT


def cut(roots: Tensor, dtype: torch.dtype) -> Tensor:
    """Below this the root (..., d) of an eigenvalue of a matrix in `dtype` is that of rounding."""
    d = max(1, roots.shape[-1])
    return (d * torch.finfo(dtype).eps) ** 0.5 * largest(roots)


def largest(x: Tensor) -> Tensor:
    """The largest of (..., d), 0 of none: (..., 1)."""
    if not x.shape[-1]:
        return x.new_zeros(*x.shape[:-1], 1)
    return x.amax(-1, keepdim=True)


def differentiable_root(a: Tensor, dtype: torch.dtype) -> Tensor:
    """The root of a symmetric matrix (..., d, d), with its derivatives up to ORDER; float64.

    Newton's iteration started at the root changes no value; each step makes one more derivative
    right, whether or not eigenvalues are equal.
    """
    eigen = Eigen(a)
    start = eigen.root()
    root = start
    for _ in range(ORDER):
        step = eigen.sylvester(eigen.roots, a - root @ root, dtype)
        root = root + (step - step.detach())
    return root


def _reference(a: Tensor) -> Tensor:
    (clean,), bad = whole(a)
    return with_nan(differentiable_root(clean, a.dtype), bad).to(a.dtype)


def _kernel(a: Tensor) -> Tensor:
    (clean,), bad = whole(a)
    eigen = Eigen(clean)
    if a.device.type == "cpu" or strict():  # elsewhere it would wait for the device
        check_psd("sqrtm_psd", "a", eigen.values, a.dtype)
    return with_nan(eigen.root(), bad).to(a.dtype)


def _cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for shape in [(2, 3), (1,), (0, 3), (3, 40)]:
        yield (psd(shape, shape[-1], device, dtype),)
    yield (torch.eye(4, device=device, dtype=dtype).mT,)


def psd(
    shape: tuple[int, ...], rank: int, device: str, dtype: torch.dtype, seed: int = 0
) -> Tensor:
    """A random (*shape, d) matrix of that rank with eigenvalues near 1, where d ends the shape."""
    make = torch.Generator().manual_seed(seed)
    factor = torch.randn(*shape, rank, generator=make, dtype=torch.float64)
    a = factor @ factor.mT / rank
    if rank == shape[-1]:
        a = a + torch.eye(rank, dtype=torch.float64)
    return a.to(device, dtype)


def _sylvester_reference(r: Tensor, g: Tensor) -> Tensor:
    """As a fixed point, which is differentiable at equal eigenvalues too."""
    (clean_r, clean_g), bad = whole(r, g)
    eigen = Eigen(clean_r)
    roots = eigen.values.clamp_min(0)
    x = eigen.sylvester(roots, clean_g, r.dtype)
    for _ in range(ORDER):
        step = eigen.sylvester(roots, clean_g - clean_r @ x - x @ clean_r, r.dtype)
        x = x + (step - step.detach())
    return with_nan(x, bad).to(g.dtype)


def _sylvester_kernel(r: Tensor, g: Tensor) -> Tensor:
    (clean_r, clean_g), bad = whole(r, g)
    eigen = Eigen(clean_r)
    x = eigen.sylvester(eigen.values.clamp_min(0), clean_g, r.dtype)
    return with_nan(x, bad).to(g.dtype)


def _sylvester_cases(device: str, dtype: torch.dtype) -> Iterator[tuple]:
    for (r,) in _cases(device, dtype):
        make = torch.Generator().manual_seed(1)
        g = torch.randn(r.shape, generator=make, dtype=torch.float64)
        yield r, g.to(device, dtype)


def _sylvester_backward(args: tuple, grads: tuple) -> tuple:
    r, g = args
    y = _sylvester(r, grads[0])
    product = y @ _sylvester(r, g)
    return -(product + product.mT), y


_sylvester = register(
    "sylvester_psd(Tensor r, Tensor g) -> Tensor",
    _sylvester_reference,
    cases=_sylvester_cases,
    dtypes=DTYPES,
    linalg=_sylvester_kernel,
    backward=_sylvester_backward,
    capturable=False,
)


def _backward(args: tuple, grads: tuple) -> tuple:
    return (_sylvester(_op(args[0]), grads[0]),)


_op = register(
    "sqrtm_psd(Tensor a) -> Tensor",
    _reference,
    cases=_cases,
    dtypes=DTYPES,
    linalg=_kernel,
    backward=_backward,
    capturable=False,
)


@_op.public
def sqrtm_psd(
    a: Tensor,  # (..., d, d), positive semi-definite; the symmetric part counts
) -> Tensor:  # (..., d, d), in a's dtype
    """The positive semi-definite square root, by eigenvalues in float64: never complex.

    NaN or infinity in a matrix gives NaN in its root and touches no other of the batch. Where a is
    singular the derivative along directions that leave its range is infinite: that block of the
    gradient is set to 0.

    Raises TypeError for dtypes other than float32 and float64. Raises ValueError for another shape
    or, on a CPU, for a matrix with an eigenvalue below -d eps of the largest, with the eps of a's
    dtype; `project_psd` repairs it.
    """
    _check.tensor("sqrtm_psd", "a", a, None, DTYPES)
    shape_of("sqrtm_psd", a=a)
    return _op(a)


def project_psd(
    a: Tensor,  # (..., d, d); the symmetric part counts
) -> Tensor:  # (..., d, d)
    """The nearest positive semi-definite matrix by the Frobenius norm: negative eigenvalues are 0.

    N. J. Higham, "Computing a nearest symmetric positive semidefinite matrix", Linear Algebra and
    its Applications 103, 1988, theorem 2.1. A constant to autograd. Raises TypeError for dtypes
    other than float32 and float64, ValueError for another shape or values that are not finite.
    """
    _check.tensor("project_psd", "a", a, None, DTYPES)
    shape_of("project_psd", a=a)
    if not a.isfinite().all():
        raise ValueError("project_psd: a must be finite; it holds NaN or infinity")
    eigen = Eigen(symmetric(a.double()))
    half = eigen.vectors * eigen.roots[..., None, :]
    return (half @ half.mT).to(a.dtype)
