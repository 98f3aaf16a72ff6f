"""A plane through latents, and a straight path between two handles that move in it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.exploration.subject import Subject
from fastlatent.jobs.errors import UsageError
from fastlatent.ops import polyline_length


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

    def moved(self, z: Tensor, point: tuple[float, float]) -> Tensor:  # (d,)
        """Latents z (d,) moved to a point along the plane; across it they stay where they are."""
        return z + (torch.tensor(point) - self.points(z[None])[0]) @ self.vectors


@dataclass(frozen=True, eq=False)
class Strip:
    """What lies on the path."""

    points: np.ndarray  # (steps, 2) in the plane
    pictures: np.ndarray  # (steps, h, w, c) uint8
    length: float  # of the decoded images' path, Euclidean, of pixels in [0, 1]
    distance: float  # between the ends' latents; of bits, how many differ


class Walker:
    """Two handles with latents of their own, which drags move along a plane."""

    def __init__(self, subject: Subject, steps: int = 10):
        self.subject, self.steps = subject, steps
        self.plane = Plane.of_directions(subject, "principal", 0, 1)
        self.handles = {"A": subject.latents[0], "B": subject.latents[self._another()]}

    def _another(self) -> int:
        """An image of another class than the first, or the last."""
        classes = self.subject.classes or ()
        others = (k for k, name in enumerate(classes) if name != classes[0])
        return next(others, len(self.subject.latents) - 1)

    def place(self, handle: str) -> tuple[float, float]:
        """Where a handle is in the plane."""
        x, y = self.plane.points(self.handles[handle][None])[0].tolist()
        return x, y

    def nearest(self, point: tuple[float, float], within: float) -> str | None:
        """The handle that is nearest to a point, if it is closer than that."""
        far = {name: np.hypot(*np.subtract(self.place(name), point)) for name in self.handles}
        name = min(far, key=lambda name: far[name])
        return name if far[name] <= within else None

    def drag(self, handle: str, point: tuple[float, float]) -> None:
        """Move a handle to a point of the plane."""
        self.handles[handle] = self.plane.moved(self.handles[handle], point)

    def to_image(self, handle: str) -> int:
        """Give a handle the latents of the known image nearest to it in the plane; its number."""
        points = self.plane.points(self.subject.latents)
        far = (points - torch.tensor(self.place(handle))).square().sum(1)
        k = int(far.argmin())
        self.handles[handle] = self.subject.latents[k]
        return k

    def strip(self) -> Strip:
        """The path from A to B."""
        first, last = self.handles["A"], self.handles["B"]
        share = torch.linspace(0, 1, self.steps)[:, None]
        z = self.subject.decodable(torch.lerp(first[None], last[None], share))
        images = self.subject.decoded(z)
        length = polyline_length(images.flatten(1)[None])
        ends = z[[0, -1]]
        apart = (ends[0] != ends[1]).sum() if self.subject.bits else (ends[0] - ends[1]).norm()
        return Strip(
            self.plane.points(z).numpy(), plots.to_bytes(images), float(length), float(apart)
        )
