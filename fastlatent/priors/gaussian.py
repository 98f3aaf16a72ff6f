"""Diagonal Gaussians: log-density, entropy."""

import math

from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def gaussian_log_prob(
    z: Tensor,  # (..., d)
    mean: Tensor,  # (..., d)
    std: Tensor,  # (..., d)
) -> Tensor:  # (...) nats
    """log N(z; mean, diag std^2)."""
    square = ((z - mean) / std).square().sum(-1)
    return -0.5 * (square + mean.shape[-1] * LOG_2PI) - std.log().sum(-1)


def entropy(std: Tensor) -> Tensor:
    """Entropy of N(., diag std^2) in nats: (..., d) -> (...)."""
    return 0.5 * std.shape[-1] * (LOG_2PI + 1) + std.log().sum(-1)
