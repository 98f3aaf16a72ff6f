"""A plane through latents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlatent.commands.exploration.subject import Subject
from fastlatent.jobs.errors import UsageError


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of two orthonormal directions through an origin."""

    names: tuple[str, str]
    vectors: Tensor  # (2, d)
    origin: Tensor  # (d,)

    @classmethod
    def of_directions(cls, subject: Subject, kind: str, x: int, y: int) -> "Plane":
        """The plane of two different directions of a kind; UsageError for one taken twice."""
        directions = subject.directions(kind)
        if x == y:
            raise UsageError(f"a map needs two directions; got {directions.names[x]} twice")
        origin = subject.mean if kind == "principal" else torch.zeros_like(subject.mean)
        chosen = directions.names[x], directions.names[y]
        return cls(chosen, directions.vectors[[x, y]], origin)

    def points(self, z: Tensor) -> Tensor:  # (n, 2)
        """Where latents (n, d) lie in the plane."""
        return (z - self.origin) @ self.vectors.T

    def latents(self, points: Tensor) -> Tensor:  # (n, d)
        """Latents on the plane, of its points (n, 2)."""
        return self.origin + points.to(self.vectors) @ self.vectors

    def moved(self, z: Tensor, point: tuple[float, float]) -> Tensor:  # (d,)
        """Latents z (d,) moved to a point along the plane; across it they stay where they are."""
        return z + (torch.tensor(point) - self.points(z[None])[0]) @ self.vectors
