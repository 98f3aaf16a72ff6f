"""Scalar fields over the plane of a map: densities of latents, and what the metric gives."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastlatent.commands.exploration.plane import Plane
from fastlatent.commands.exploration.subject import Subject
from fastlatent.geometry import condition_number, log_volume

SIDES = (8, 16, 32, 64)  # points of a field in each direction, coarse to fine


@dataclass(frozen=True)
class Field:
    """A scalar at each point of a plane."""

    name: str
    values: Callable[[Plane, Tensor], Tensor]  # points (n, 2) of the plane -> (n,)
    part: int  # points computed at a time

    def refined(
        self, plane: Plane, window: tuple[float, float, float, float]
    ) -> Iterator[np.ndarray]:
        """The field on a window (left, right, bottom, top), from coarse to fine.

        Images (side, side) of float32, the bottom row first; what is not computed yet is taken
        from the coarser image, or NaN.
        """
        left, right, bottom, top = window
        image = np.full((SIDES[0], SIDES[0]), np.nan, np.float32)
        for side in SIDES:
            image = np.kron(image, np.ones((side // len(image),) * 2, np.float32))
            middles = (torch.arange(side) + 0.5) / side
            x, y = left + (right - left) * middles, bottom + (top - bottom) * middles
            points = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1)
            for start in range(0, side**2, self.part):
                found = self.values(plane, points[start : start + self.part])
                image.flat[start : start + self.part] = found.float().numpy()
                yield image.copy()


def fields(subject: Subject) -> list[Field]:
    """Those that the run has: of the aggregate posterior, of each density, of the metric."""
    found = []
    if subject.posterior is not None:
        mean, std = subject.posterior

        def aggregate(plane: Plane, points: Tensor) -> Tensor:
            return marginal(plane, points, mean, std)

        name = "aggregate posterior, log density (nats)"
        found.append(Field(name, aggregate, 256))
    for name in subject.densities:
        label = "the model's prior" if name == "own" else f"prior {name}"

        def density(plane: Plane, points: Tensor, name: str = name) -> Tensor:
            return subject.densities[name](plane.latents(points))

        found.append(Field(f"{label}, log density (nats)", density, 256))
    if subject.has_metric:

        def volume(plane: Plane, points: Tensor) -> Tensor:
            return log_volume(subject.metric.matrix(plane.latents(points)))

        def condition(plane: Plane, points: Tensor) -> Tensor:
            return condition_number(subject.metric.matrix(plane.latents(points))).log10()

        found += [
            Field("metric, log volume", volume, 32),
            Field("metric, log10 of the condition number", condition, 32),
        ]
    return found


def marginal(plane: Plane, points: Tensor, mean: Tensor, std: Tensor) -> Tensor:  # (n,)
    """log of the mean of N(mean, std^2) (k, d each), of what lies across the plane integrated out.

    A Gaussian's coordinates in the plane are Gaussian: W (mean - origin), W diag(std^2) W^T.
    """
    w = plane.vectors.double()
    centres = (mean - plane.origin).double() @ w.T  # (k, 2)
    spread = torch.einsum("id,kd,jd->kij", w, std.double().square(), w)
    factors = torch.linalg.cholesky(spread)
    apart = (points.double()[:, None] - centres)[..., None]  # (n, k, 2, 1)
    scaled = torch.linalg.solve_triangular(factors, apart, upper=False)[..., 0]
    log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (k,)
    each = -scaled.square().sum(-1) / 2 - log_det - math.log(2 * math.pi)
    return each.logsumexp(1) - math.log(len(mean))
