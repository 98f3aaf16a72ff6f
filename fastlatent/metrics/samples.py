"""Two plain numbers about samples that need no other network.

Neither is a score to optimise: the first looks at second moments of the codes only, the second is
low for any sampler that keeps repeating one typical image.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.metrics.sets import plain_arithmetic


class MomentError(NamedTuple):
    """Errors of E[b_i b_j] over the pairs i < j of bits +/-1."""

    max: float
    rms: float


@plain_arithmetic
def moment_error(
    agreement: Tensor,  # (d, d) fraction of the samples with equal bits at i and j
    expected: Tensor,  # (d, d) what it should be
) -> MomentError:
    """How far the pair moments of sampled codes are from the expected ones; E = 2 agreement - 1.

    n independent samples of the right law have an rms error of at most 1 / sqrt(n).
    Raises ValueError unless both are square and of one shape with d >= 2.
    """
    shape = agreement.shape
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2 or expected.shape != shape:
        raise ValueError(
            "moment_error: agreement and expected must both be (d, d) with d >= 2; "
            f"got {tuple(shape)} and {tuple(expected.shape)}"
        )
    row, column = torch.triu_indices(*shape, 1, device=agreement.device)
    error = 2 * (agreement - expected.to(agreement))[row, column].double()
    return MomentError(float(error.abs().max()), float(error.square().mean().sqrt()))


@plain_arithmetic
def nearest_distance(
    images: Tensor,  # (n, c, h, w) in [0, 1]
    references: Iterable[Tensor],  # each (m, c, h, w) in [0, 1]
) -> Tensor:  # (n,) float64
    """Distance of each image to the nearest reference: root of the mean squared pixel difference.

    The references come in parts, as there may be many. Raises ValueError when there are none or
    they are of another shape.
    """
    x = images.flatten(1).double()
    nearest = x.new_full((len(x),), float("inf"))  # squared, less |x|^2
    for part in references:
        if part.shape[1:] != images.shape[1:]:
            raise ValueError(
                "nearest_distance: references must have the shape of images, "
                f"{tuple(images.shape[1:])}; got {tuple(part.shape[1:])}"
            )
        y = part.to(x).flatten(1)
        if len(y):
            nearest = nearest.minimum((y.square().sum(1) - 2 * x @ y.mT).amin(1))
    if len(x) and nearest.isinf().any():
        raise ValueError("nearest_distance: references must hold at least one image")
    squared = (nearest + x.square().sum(1)).clamp_min(0)
    return (squared / x.shape[1]).sqrt()
