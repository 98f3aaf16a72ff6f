"""Paths between two handles that move in a plane."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.exploration.plane import Plane
from fastlatent.commands.exploration.subject import Subject
from fastlatent.geometry.paths import equal_steps
from fastlatent.geometry.solver import geodesic
from fastlatent.inference.walking import Walking, walk, walkings
from fastlatent.models.capabilities import project
from fastlatent.ops import polyline_length

NAMES: dict[Walking, str] = {
    "linear": "straight",
    "spherical": "great circle",
    "likelihood": "likely",
    "geodesic": "geodesic",
    "copula": "arc of the copula",
}
SEARCHED = ("likelihood", "geodesic")  # those that take longer than a drag may
# Of a search, what a drag waits for.
ROUGH: dict[str, Any] = {"spans": (2,), "segments": 8, "max_iterations": 3}  # of geodesics
ROUGH_ITERATIONS = 20  # of likely paths


@dataclass(frozen=True, eq=False)
class Strip:
    """What lies on a path."""

    method: Walking
    points: np.ndarray  # (steps, 2) in the plane
    pictures: np.ndarray  # (steps, h, w, c) uint8
    length: float  # of the polyline through the images, Euclidean, of pixels in [0, 1]
    distance: float  # between the ends' latents; of bits, how many differ
    least: float | None  # nats, of the least likely point; None without a density
    rough: bool = False  # whether it is what little of a search found


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

    @property
    def ends(self) -> Tensor:  # (2, d)
        """Latents of A and B, as the model decodes them."""
        return self.subject.decodable(torch.stack([self.handles["A"], self.handles["B"]]))

    def strips(self, methods: Sequence[Walking], refine: bool = True) -> Iterator[Strip]:
        """Paths from A to B, one after the other; with `refine`, a searched one is given twice.

        First as little of the search finds at once, then as all of it does. Where A and B and the
        plane are when this is called counts, whatever happens to them meanwhile.
        """
        return self._strips([*methods], self.ends, self.plane, refine)

    def _strips(
        self, methods: list[Walking], ends: Tensor, plane: Plane, refine: bool
    ) -> Iterator[Strip]:
        for method in methods:
            if method in SEARCHED:
                yield self._strip(method, self._rough(method, *ends.split(1)), plane, rough=True)
        for method in methods:
            if method not in SEARCHED or refine:
                yield self._strip(method, self._whole(method, *ends.split(1)), plane)

    def _rough(self, method: Walking, start: Tensor, end: Tensor) -> Tensor:  # (steps, d)
        subject = self.subject
        if method == "geodesic":
            found = geodesic(subject.metric, start, end, **ROUGH)
            t = equal_steps(subject.metric, found.curves, self.steps, segments=32)
            return project(subject.apart.model, found.curves.points(t))[0]
        likely = subject.likely
        search = {**likely.search, "iterations": ROUGH_ITERATIONS}
        return self._walk(method, start, end, space=likely.space, search=search)

    def _whole(self, method: Walking, start: Tensor, end: Tensor) -> Tensor:  # (steps, d)
        subject = self.subject
        if method == "geodesic":
            return self._walk(method, start, end, metric=subject.metric)
        if method == "likelihood":
            likely = subject.likely
            return self._walk(method, start, end, space=likely.space, search=likely.search)
        copula = subject.run.copula() if method == "copula" else None
        return self._walk(method, start, end, copula=copula)

    def _walk(self, method: Walking, start: Tensor, end: Tensor, **given: Any) -> Tensor:
        # A thread of its own does what is searched, with a model of its own.
        run = self.subject.apart if method in SEARCHED else self.subject.run
        device = run.device
        found = walk(run.model, method, start.to(device), end.to(device), self.steps, **given)
        return found.latents[0].cpu().float()

    def _strip(self, method: Walking, z: Tensor, plane: Plane, rough: bool = False) -> Strip:
        z = z.detach().cpu()
        images = self.subject.decoded(z, apart=method in SEARCHED)
        length = polyline_length(images.flatten(1)[None])
        apart = (z[0] != z[-1]).sum() if self.subject.bits else (z[0] - z[-1]).norm()
        return Strip(
            method,
            plane.points(z).numpy(),
            plots.to_bytes(images),
            float(length),
            float(apart),
            self.subject.least_log_prob(z),
            rough,
        )


def methods_of(subject: Subject) -> tuple[Walking, ...]:
    """The paths that the run offers, the default first."""
    offered = walkings(subject.run.model)
    left_out = set() if subject.has_metric else {"geodesic"}
    left_out |= set() if subject.offers_likely else {"likelihood"}
    return tuple(method for method in offered if method not in left_out)
