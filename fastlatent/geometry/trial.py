"""Looking at what a decoder does on its first latents."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastlatent.geometry.arguments import DTYPES
from fastlatent.geometry.frozen import (
    LatentFunction,
    Refused,
    UnknownOutput,
    first_line,
    refusal,
    side_by_side,
)
from fastlatent.geometry.steps import flattened
from fastlatent.geometry.tiles import is_out_of_memory

# How far, of the largest value, two ways to compute the same may differ: well above what rounding
# does in float32, well below what batch norm or a wrong derivative do.
_TOLERANCE = 1e-3
_DIFFERENCES = 5e-2  # the same of differences, in float32
_FLAT = 1e-3  # second derivatives so small beside the first count as 0, but for rounding

# Latents among which to look for some with a finite output.
_CANDIDATES = 64

Push = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (n, d), (n or 1, k, d): F, J v


class Trial:
    """What running a decoder on one and on two latents shows; raises where it can't be used.

    ValueError or TypeError: the decoder refuses these latents, its output is not (n, ...), not
    floating, depends on the batch or on chance, or is not differentiable in z.
    """

    def __init__(self, function: LatentFunction, z: Tensor):
        self._function = function
        self.latents = _telling(function, z.detach())  # (2, d)
        first = self.latents[:1]
        with torch.enable_grad(), _Largest() as largest:
            leaf = self.latents.clone().requires_grad_()
            mean, variance = _run(function, leaf)
        alone, alone_variance = _run_alone(function, first)
        self.largest = -(-largest.numel // 2)  # numbers in the largest tensor of one latent
        self.shape = mean.shape[1:]
        role = function.role
        _check_rows(role, alone, mean)
        if not _depends(mean, leaf):
            raise ValueError(
                f"{role}: the output is not differentiable with respect to the latents (detached "
                "from them, computed outside PyTorch, or constant)"
            )
        self.stochastic = variance is not None and _depends(variance, leaf)
        if variance is not None and self.stochastic:
            assert alone_variance is not None
            _check_rows(role, alone_variance, variance)
            if variance[0].numel() != mean[0].numel():
                raise ValueError(
                    f"{role}: mean and variance must have as many elements for each latent; "
                    f"got shapes {tuple(mean.shape[1:])} and {tuple(variance.shape[1:])}"
                )
            _check_variance(function, z.detach()[:_CANDIDATES])
        with torch.enable_grad():
            output = side_by_side(mean, variance, self.stochastic)
        self._output, self._weight = output.detach(), _directions(output)  # (2, D)
        (self._gradient,) = torch.autograd.grad(output, leaf, self._weight)

    def disagreement(
        self,
        value: Callable[[Tensor], Tensor],  # (n, d) -> (n, D): mean and standard deviation
        push: Push,
    ) -> str | None:
        """Why a program does not repeat the output and, in random directions, the gradient."""
        finite = self._gradient.isfinite().all(1)
        if not finite.any():
            return "its derivative is not finite at the latents it was tried on"
        # Other numbers of latents than of tangents, and tangents that all latents share.
        z, y, w, gradient = (
            part[_THRICE] for part in (self.latents, self._output, self._weight, self._gradient)
        )
        rows = finite[_THRICE]
        shared = _directions(self.latents)[None]  # (1, 2, d)
        own = _directions(z)[:, None]
        size = float(gradient[rows].norm() * shared.norm())
        with torch.no_grad():
            same = _close(value(z)[rows], y[rows])
            for v in (shared, own):
                pushed_from, dy = push(z, v)
                along, slope = (dy * w[:, None]).sum(2), (gradient[:, None] * v).sum(2)
                same &= _close(pushed_from[rows], y[rows]) and _close(
                    along[rows], slope[rows], size
                )
        return None if same else "its operations give other values or derivatives when repeated"

    def gradient_disagreement(self, push: Push) -> str | None:
        """Why the gradient of J v is not what two reverse passes, or differences of one, give.

        PyTorch differentiates some of its forward-mode derivatives wrongly, and others not at all.
        """
        z = self.latents[_THRICE]
        v = _directions(z)
        try:
            with torch.enable_grad():
                leaf = z.clone().requires_grad_()
                dy = push(leaf, v[:, None])[1][:, 0]
                w = _directions(dy)
                found = _gradient((dy * w).sum(), leaf)
        except RuntimeError as error:
            return f"the derivative has no gradient: {first_line(error)}"
        first, expected, tolerance = self._second_derivative(z, v, w)
        rows = expected.isfinite().all(1)
        size = max(float(expected[rows].norm()), _FLAT * float(first[rows].norm() * v.norm()))
        same = _close(found[rows], expected[rows], size * tolerance / _TOLERANCE)
        return None if same else "its derivative has a wrong gradient in PyTorch"

    def _second_derivative(
        self, z: Tensor, v: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, float]:  # (n, d), (n, d), tolerance
        """The gradients of w^T F and of w^T J v by z."""

        def slope(at: Tensor) -> tuple[Tensor, Tensor]:
            leaf = at.clone().requires_grad_()
            y = side_by_side(*_run(self._function, leaf), self.stochastic)
            return leaf, torch.autograd.grad((y * w).sum(), leaf, create_graph=True)[0]

        with torch.enable_grad():
            leaf, first = slope(z)
            with contextlib.suppress(RuntimeError):  # an operation that is differentiated once
                return first.detach(), _gradient((first * v).sum(), leaf), _TOLERANCE
            step = torch.finfo(z.dtype).eps ** (1 / 3) * float(1 + z.abs().max())
            ahead, behind = slope(z + step * v)[1], slope(z - step * v)[1]
        return first.detach(), ((ahead - behind) / (2 * step)).detach(), _DIFFERENCES


_THRICE = [0, 1, 0]  # rows of the two latents


def _directions(like: Tensor) -> Tensor:
    """Random ones, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _gradient(total: Tensor, leaf: Tensor) -> Tensor:
    """That of a sum, 0 where it does not depend on the leaf."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(total, leaf, materialize_grads=True)[0]


def _telling(function: LatentFunction, z: Tensor) -> Tensor:  # (n, d) -> (2, d)
    """The first two latents; where one has no finite output, two that have one, if there are."""
    pair = torch.cat([z[:2], 1.01 * z[:1] + 0.01])[:2]
    if _finite(function, pair).all():
        return pair
    some = z[:_CANDIDATES]
    good = some[_finite(function, some)]
    return torch.cat([good, 1.01 * good[:1] + 0.01])[:2] if len(good) else pair


def _finite(function: LatentFunction, z: Tensor) -> Tensor:  # (n, d) -> (n,)
    with torch.no_grad():
        outputs = _run(function, z)
    rows = z.isfinite().all(1)
    for y in outputs:
        if y is not None and y.shape[:1] == z.shape[:1]:
            rows = rows & flattened(y).isfinite().all(1)
    return rows


def _run(function: LatentFunction, z: Tensor) -> tuple[Tensor, Tensor | None]:
    try:
        return function(z)
    except (UnknownOutput, Refused):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise refusal(function.role, z, error) from error


def _run_alone(function: LatentFunction, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """The output for a single latent, of a decoder that ran on two."""
    try:
        return _run(function, z)
    except ValueError as error:
        raise ValueError(
            f"{function.role}: it runs on two latents but not on a single one, as if its output "
            "depended on the batch; batch norm has to be in evaluation mode (.eval()): "
            f"{first_line(error.__cause__ or error)}"
        ) from error


def _check_rows(role: str, alone: Tensor, together: Tensor) -> None:
    """`alone` is the output of the first latent, `together` that of the first and another."""
    if not together.is_floating_point():
        raise TypeError(
            f"{role}: the output must be of a floating dtype to be differentiable with respect to "
            f"the latents; got {str(together.dtype).removeprefix('torch.')}"
        )
    if together.dtype not in DTYPES:
        raise TypeError(
            f"{role}: the output must be float32 or float64, which leaves digits in differences; "
            f"got {str(together.dtype).removeprefix('torch.')}"
        )
    if together.dim() == 0 or len(together) != 2 or alone.shape != (1, *together.shape[1:]):
        raise ValueError(
            f"{role}: n latents must give an output of shape (n, ...); 1 latent gave "
            f"{tuple(alone.shape)} and 2 gave {tuple(together.shape)}"
        )
    if not _close(alone[0].detach(), together[0].detach()):
        raise ValueError(
            f"{role}: the output of a latent depends on the others in its batch, or on chance; "
            "batch norm and dropout have to be in evaluation mode (.eval())"
        )


def _check_variance(function: LatentFunction, z: Tensor) -> None:
    with torch.no_grad():
        for part in z.split(8):
            _, variance = _run(function, part)
            if variance is not None and bool((variance < 0).any()):
                raise ValueError(
                    f"{function.role}: the variance must not be negative, got "
                    f"{float(variance.nan_to_num(0).min()):.3g}; a log-variance has to be returned "
                    "as its exponential"
                )


def _close(a: Tensor, b: Tensor, scale: float = 0.0) -> bool:
    """Whether they differ by less than the tolerance times the scale or the largest of b."""
    if b.numel() == 0 or a.shape != b.shape:
        return a.shape == b.shape
    scale = max(scale, float(b.abs().nan_to_num(0, 0, 0).amax()))
    return torch.allclose(a, b, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


def _depends(output: Tensor, leaf: Tensor) -> bool:
    if not output.requires_grad:
        return False
    with torch.enable_grad():
        total = output.sum()
    (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True, retain_graph=True)
    return gradient is not None


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result
