"""What training needs of a family that learns a latent for each training image."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastlatent.data import Batch
from fastlatent.noise import Noise


@dataclass(frozen=True)
class Room:
    """Where latents are learned and kept; rank r of `world` holds r, r + world, ..."""

    device: torch.device
    seed: int
    batch: int  # images of a step, of all ranks
    test_batch: int  # images to read at a time
    folder: Path  # for files that need not last
    rank: int = 0
    world: int = 1
    in_file: bool = False  # keep the latents in a memory-mapped file


class LearnedLatents(Protocol):
    """Latents that are learned with the weights, those of one rank; `index` counts all images."""

    def initialise(self) -> None:
        """Set the initial latents; the same on any number of ranks."""

    def take(self, batch: Batch) -> dict[str, Tensor]:
        """What `forward` is given for these images; their gradients are for `move`."""

    def leave(self) -> None:
        """Forget what was taken: the step is left out."""

    def move(
        self,
        objective: Callable[..., dict[str, Tensor]],  # of images, noise and what `take` gives
        parts: list[Batch],
        noises: list[Noise],
    ) -> list[dict[str, Tensor]]:
        """Gradient step of a step's latents, after that of the weights; values to log, by part."""

    def describe(self, model: Any) -> None:
        """Set what the model needs for new latents and searches; asks all ranks."""

    def gather(self, index: Tensor) -> Tensor:
        """The latents at `index` (k,) of whichever rank, on all of them: (k, d)."""

    def whole(self) -> Tensor | None:
        """All latents (N, d), to be written; None on other ranks than the first, which are
        asked."""

    def restore(self, latents: Tensor) -> None:
        """Take up this rank's rows of all latents (N, d); ValueError for those of other images."""

    def all_finite(self) -> bool:
        """Whether every learned latent of this rank is finite."""
