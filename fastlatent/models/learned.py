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
    """Where and for what steps codes are learned; rank r of `world` holds r, r + world, ..."""

    device: torch.device
    seed: int
    batch: int  # images of a step, of all ranks
    test_batch: int  # images to read at a time
    folder: Path  # for files that need not last
    rank: int = 0
    world: int = 1
    in_file: bool = False  # the codes lie in a mapped file


class LearnedCodes(Protocol):
    """Codes that are learned with the weights, those of one rank; `index` counts all images."""

    def initialise(self) -> None:
        """Codes to begin with; the same on any number of ranks."""

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
        """Move the codes of a step, after the weights; values to log, of each part."""

    def describe(self, model: Any) -> None:
        """Tell the model what new codes and searches need; asks all ranks."""

    def gather(self, index: Tensor) -> Tensor:
        """The codes at `index` (k,) of whichever rank, on all of them: (k, d)."""

    def whole(self) -> Tensor | None:
        """All codes (N, d), to be written; None on other ranks than the first, which are asked."""

    def restore(self, codes: Tensor) -> None:
        """Take up this rank's rows of all codes (N, d); ValueError for those of other images."""

    def all_finite(self) -> bool:
        """Whether every code of this rank is."""
