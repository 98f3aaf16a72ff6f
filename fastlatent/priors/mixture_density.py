"""Log-densities of Gaussian mixtures, with closed-form gradients in bounded memory.

log p(z) = logsumexp_k (a_k - |y_k|^2 / 2). The gradient is a mean over components weighted by the
responsibilities r_k = exp(a_k - |y_k|^2 / 2 - log p(z)). Where only z wants a gradient, it is
computed with the value, one chunk of points at a time while that is in the cache; else the backward
pass computes the responsibilities again. So nothing of size (n, K) is ever kept.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastlatent.nn import at_least_float32
from fastlatent.priors.gaussian import LOG_2PI

_FEATURES = 8  # dimensions up to which z z^T is written out
_NUMBERS = 1 << 18  # in an intermediate result, so that it stays in the cache
_COLUMNS = 1 << 13  # components at a time
_LEAST = torch.finfo(torch.float64).min  # in place of -inf, whose differences are NaN


def log_diagonal_mixture(
    z: Tensor,  # (..., d)
    log_weights: Tensor,  # (K,)
    means: Tensor,  # (K, d)
    stds: Tensor,  # (K, d)
) -> Tensor:  # (...) nats
    """log sum_k w_k N(z; m_k, diag s_k^2), streaming over points and components.

    The square is expanded in the features (1, z, z^2), which makes it one matrix product; float64
    and a common centre keep what cancels in it: the error is about 1e-16 (|m| / s)^2 nats.
    """
    centre = means.detach().double().mean(0)
    m, s = means.double() - centre, stds.double()
    precision = s**-2
    constant = log_weights.double() - s.log().sum(1) - 0.5 * (m.square() * precision).sum(1)
    constant = constant - 0.5 * m.shape[1] * LOG_2PI
    table = torch.cat([constant[:, None], m * precision, -0.5 * precision], 1).mT
    return _of_features(z, centre, table)


def log_full_mixture(
    z: Tensor,  # (..., d)
    log_weights: Tensor,  # (K,)
    means: Tensor,  # (K, d)
    precisions_cholesky: Tensor,  # (K, d, d) P_k: upper triangular, P_k P_k^T the precision
) -> Tensor:  # (...) nats
    """log sum_k w_k N(z; m_k, (P_k P_k^T)^-1)."""
    d = means.shape[1]
    p = precisions_cholesky
    log_scale = p.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    constant = log_weights + log_scale - 0.5 * d * LOG_2PI
    if d > _FEATURES:
        dtype = torch.promote_types(at_least_float32(z).dtype, p.dtype)
        points = at_least_float32(z).to(dtype).reshape(-1, d)
        values = _WideMixture.apply(points, constant.to(dtype), means.to(dtype), p.to(dtype))
        return values.reshape(z.shape[:-1]).to(at_least_float32(z).dtype)
    centre = means.detach().double().mean(0)
    m, p = means.double() - centre, p.double()
    precision = p @ p.mT
    linear = (precision @ m[..., None])[..., 0]
    constant = constant.double() - 0.5 * (m * linear).sum(-1)
    table = torch.cat([constant[:, None], linear, -0.5 * precision.flatten(1)], 1).mT
    return _of_features(z, centre, table)


def _of_features(z: Tensor, centre: Tensor, table: Tensor) -> Tensor:
    dtype = at_least_float32(z).dtype
    points = z.double().reshape(-1, z.shape[-1]) - centre
    return _FeatureMixture.apply(points, table, dtype).reshape(z.shape[:-1]).to(dtype)


def _features(z: Tensor, width: int) -> Tensor:
    """(n, d) -> (n, width): 1, z and z^2, or 1, z and z z^T."""
    square = z.square() if width == 2 * z.shape[1] + 1 else (z[:, :, None] * z[:, None]).flatten(1)
    return torch.cat([torch.ones_like(z[:, :1]), z, square], 1)


def _pull_back(gradient: Tensor, z: Tensor) -> Tensor:
    """Gradient of the features (n, width) to that of z (n, d); that of z z^T is symmetric."""
    d = z.shape[1]
    linear, square = gradient[:, 1 : d + 1], gradient[:, d + 1 :]
    if square.shape[1] == d:
        return linear + 2 * square * z
    return linear + 2 * (square.unflatten(1, (d, d)) * z[:, None]).sum(2)


class _FeatureMixture(torch.autograd.Function):
    """logsumexp over columns of features(z) @ table: (n, d), (width, K) -> (n,) float64.

    Exponentials are taken in `dtype`, after the largest term is subtracted in float64.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        only_z = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        values, slope = z.new_empty(len(z)), torch.empty_like(z) if only_z else None
        columns = _parts(table.shape[1], _COLUMNS)
        for rows in _parts(len(z), _NUMBERS // min(table.shape[1], _COLUMNS)):
            features = _features(z[rows], len(table))
            total: Tensor | None = None  # of the columns before
            back: Tensor | None = None
            for part in columns:
                exponents = features @ table[:, part]
                peak = exponents.amax(1, keepdim=True).clamp_min(_LEAST)
                shares = _exp_((exponents - peak).to(dtype))
                some = shares.sum(1).to(z.dtype)
                if slope is not None:
                    part_back = shares.to(z.dtype) @ table[:, part].mT
                    if back is None or total is None:
                        back = part_back / some[:, None]
                    else:
                        log_some = some.log() + peak[:, 0]
                        weight = (log_some - total).sigmoid()[:, None]
                        back = torch.lerp(back, part_back / some[:, None], weight)
                some = some.log_().add_(peak[:, 0])
                total = some if total is None else torch.logaddexp(total, some)
            assert total is not None
            values[rows] = total
            if slope is not None and back is not None:
                slope[rows] = _pull_back(back, z[rows])
        ctx.dtype = dtype
        ctx.save_for_backward(*((slope,) if only_z else (z, table, values)))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            return ctx.saved_tensors[0] * gradient[:, None], None, None
        z, table, values = ctx.saved_tensors
        to_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        to_table = torch.zeros_like(table)
        for rows in _parts(len(z), _NUMBERS // min(table.shape[1], _COLUMNS)):
            features = _features(z[rows], len(table))
            back = torch.zeros_like(features)
            for part in _parts(table.shape[1], _COLUMNS):
                exponents = features @ table[:, part] - values[rows, None]
                shares = _exp_(exponents.to(ctx.dtype)).to(z.dtype) * gradient[rows, None]
                to_table[:, part] += features.mT @ shares
                if to_z is not None:
                    back.addmm_(shares, table[:, part].mT)
            if to_z is not None:
                to_z[rows] = _pull_back(back, z[rows])
        return to_z, to_table, None


class _WideMixture(torch.autograd.Function):
    """logsumexp_k (constant_k - |(z - m_k) P_k|^2 / 2): (n, d), (K,), (K, d), (K, d, d) -> (n,)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, constant: Tensor, means: Tensor, factors: Tensor) -> Tensor:
        only_z = ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:])
        values, slope = z.new_empty(len(z)), torch.empty_like(z) if only_z else None
        back = factors.mT.flatten(0, 1) if only_z else None  # (K d, d): all P_k^T in one product
        for rows in _parts(len(z), _NUMBERS // means.numel()):
            _, y, exponents = _exponents(z[rows], constant, means, factors)
            peak = exponents.amax(1, keepdim=True).clamp_min(torch.finfo(z.dtype).min)
            shares = _exp_(exponents.sub_(peak))
            total = shares.sum(1, keepdim=True)
            values[rows] = (total.log() + peak)[:, 0]
            if slope is not None and back is not None:
                torch.mm(y.mul_((shares / total)[..., None]).flatten(1), back, out=slope[rows])
        ctx.save_for_backward(*((slope,) if only_z else (z, constant, means, factors, values)))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            return -ctx.saved_tensors[0] * gradient[:, None], None, None, None
        z, constant, means, factors, values = ctx.saved_tensors
        to_z = torch.empty_like(z) if ctx.needs_input_grad[0] else None
        to_constant, sums, to_factors = map(torch.zeros_like, (constant, means, factors))
        back = factors.mT.flatten(0, 1)
        for rows in _parts(len(z), _NUMBERS // means.numel()):
            difference, y, exponents = _exponents(z[rows], constant, means, factors)
            shares = _exp_(exponents.sub_(values[rows, None])).mul_(gradient[rows, None])
            y.mul_(shares[..., None])
            to_constant += shares.sum(0)
            sums += y.sum(0)
            to_factors.baddbmm_(difference.permute(1, 2, 0), y.transpose(0, 1), alpha=-1)
            if to_z is not None:
                torch.mm(y.flatten(1), back, out=to_z[rows]).neg_()
        return to_z, to_constant, (factors @ sums[..., None])[..., 0], to_factors


def _exponents(
    z: Tensor, constant: Tensor, means: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """z - m_k and y = (z - m_k) P_k, (n, K, d) each, and constant - |y|^2 / 2 (n, K)."""
    difference = z[:, None] - means
    y = torch.empty_like(difference)
    torch.bmm(difference.transpose(0, 1), factors, out=y.transpose(0, 1))
    return difference, y, constant - 0.5 * torch.linalg.vector_norm(y, dim=-1).square()


def _exp_(x: Tensor) -> Tensor:
    """exp in place, without the subnormal results that take a processor ten times as long."""
    return x.clamp_min_(math.log(torch.finfo(x.dtype).tiny) + 8).exp_()


def _parts(n: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
