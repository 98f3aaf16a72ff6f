"""The Frechet distance between Gaussians fitted to features: FID, whatever the features are.

d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr (S1 S2)^(1/2)  (D. C. Dowson, B. V. Landau, "The Frechet
distance between multivariate normal distributions", Journal of Multivariate Analysis 12, 1982);
M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", NeurIPS 2017, is where images are measured by it.
"""

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from fastlatent.ops import trace_sqrtm
from fastlatent.ops.roots import Diagnostics, nuclear_norm


@overload
def frechet_distance(
    mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, diagnostics: Literal[False] = False
) -> Tensor: ...
@overload
def frechet_distance(
    mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, diagnostics: Literal[True]
) -> tuple[Tensor, Diagnostics]: ...
def frechet_distance(
    mu1: Tensor,  # (..., d)
    sigma1: Tensor,  # (..., d, d), a covariance
    mu2: Tensor,  # (..., d)
    sigma2: Tensor,  # (..., d, d), a covariance
    diagnostics: bool = False,
) -> Tensor | tuple[Tensor, Diagnostics]:  # (...) float64
    """The squared Frechet distance, differentiable, in float64; at least 0.

    With `diagnostics` also how fastlatent.ops.trace_sqrtm found its part. Rounding that would make
    the distance negative is cut off. Raises TypeError for other dtypes than float32 and float64,
    ValueError for shapes that do not fit, values that are not finite, or a sigma that is no
    covariance: its smallest eigenvalue is named, and what repairs it.
    """
    arguments = {"mu1": mu1, "sigma1": sigma1, "mu2": mu2, "sigma2": sigma2}
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"frechet_distance: {name} must be a float32 or float64 tensor")
        if not value.isfinite().all():
            raise ValueError(f"frechet_distance: {name} must be finite; it holds NaN or infinity")
    shape = (*mu1.shape, *mu1.shape[-1:])
    if mu1.dim() < 1 or mu2.shape != mu1.shape or sigma1.shape != shape or sigma2.shape != shape:
        raise ValueError(
            "frechet_distance: mu1 and mu2 must have shape (..., d) and both sigmas (..., d, d); got "
            + ", ".join(f"{name} {tuple(value.shape)}" for name, value in arguments.items())
        )
    means = (mu1.double() - mu2.double()).square().sum(-1)
    try:
        root, how = trace_sqrtm(sigma1, sigma2, diagnostics=True)
    except ValueError as error:
        named = str(error).replace("trace_sqrtm: a ", "sigma1 ").replace("trace_sqrtm: b ", "sigma2 ")
        raise ValueError(f"frechet_distance: {named}") from None
    traces = sigma1.double().diagonal(dim1=-2, dim2=-1) + sigma2.double().diagonal(dim1=-2, dim2=-1)
    distance = (means + traces.sum(-1) - 2 * root.double()).clamp_min(0)
    return (distance, how) if diagnostics else distance
