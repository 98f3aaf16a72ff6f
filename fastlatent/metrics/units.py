"""Units in which the features of any sets are near 1, so that nothing overflows or rounds to 0."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 2.0**1000  # scale


class Units(NamedTuple):
    """A centre, and a scale that is a power of two, so that scaling rounds nothing."""

    centre: Tensor  # (d,) float64, of features times scale
    scale: float

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, d): x times scale less the centre, rounded to that dtype once."""
        wide = x.to(torch.float64, copy=True)
        if self.scale != 1:
            wide.mul_(self.scale)
        return wide.sub_(self.centre).to(dtype)


def unit_scale(*sets: Tensor) -> float:
    """1, or the power of two that brings the largest feature near 1 if that is far from it."""
    exponent = _exponent(*sets)
    return 1.0 if abs(exponent) <= 20 else 2.0**-exponent


def common_units(*sets: Tensor, scale: float | None = None) -> Units:
    """About the mean of the sets' means; by default in the largest distance from it, near 1.

    Features that are all alike have no such distance, and keep the scale that brings them near 1.
    """
    first = 2.0 ** -_exponent(*sets) if scale is None else scale
    means = [(x if first == 1 else x.double() * first).mean(0, dtype=torch.float64) for x in sets]
    units = Units(torch.stack(means).mean(0), first)
    if scale is not None:
        return units
    apart = 2.0 ** -_exponent(*(_reach(x, units) for x in sets))
    apart = min(apart, LARGEST / first)
    return Units(units.centre * apart, first * apart)


def _reach(x: Tensor, units: Units) -> Tensor:
    """(d,): the largest distance from the centre along each feature."""
    least, most = (part.double() * units.scale for part in x.aminmax(dim=0))
    return torch.maximum(units.centre - least, most - units.centre)


def _exponent(*sets: Tensor) -> int:
    """Exponent of the largest absolute value, 0 where all are 0, kept in the range of the dtype."""
    largest = max(float(torch.stack(x.detach().aminmax()).abs().max()) for x in sets)
    return min(max(math.frexp(largest)[1], -1000), 1000)
