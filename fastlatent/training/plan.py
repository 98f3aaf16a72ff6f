"""Which images each step sees and what follows it: all a function of the step."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from fastlatent.data import Batch, Split, epoch_order
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.jobs.ranks import processes
from fastlatent.noise import Noise
from fastlatent.presets import TrainConfig


@dataclass(frozen=True)
class Plan:
    """Which images each optimizer step sees: a function of the configuration and the step.

    A step takes `batch` images in all: `accumulate` parts on each of `world` ranks. The images
    that are left at the end of an epoch are skipped. Where images are `owned`, rank r of `world`
    sees none but r, r + world, r + 2 world, ...
    """

    config: TrainConfig
    images: int
    device: torch.device
    rank: int = 0
    world: int = 1
    owned: bool = False

    def __post_init__(self) -> None:
        batch, shares = self.config.batch, self.config.accumulate * self.world
        if batch % shares:
            parts = f", {self.config.accumulate} parts each" if self.config.accumulate > 1 else ""
            fitting = {max(1, batch // shares) * shares, -(-batch // shares) * shares}
            raise UsageError(
                f"{setting('batch', batch)} cannot be shared evenly by {processes(self.world)}"
                f"{parts}; take {' or '.join(map(str, sorted(fitting)))}"
            )
        if self.images < batch:
            raise UsageError(
                f"{setting('batch', batch)} is larger than the training set of {self.images} images"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.config.batch

    @property
    def last_step(self) -> int:
        """Optimizer steps in all."""
        return self.config.steps or self.config.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> float:
        """Epochs that are done after `step` steps."""
        return step / self.steps_per_epoch

    def noise(self, step: int, part: int) -> Noise:
        """The noise of one part of a step on this rank."""
        return Noise(self.config.seed, step * self.config.accumulate + part, self.rank)

    def _order(self, epoch: int) -> tuple[Tensor, int, int]:
        """The order of an epoch's images, and which share of it this rank takes."""
        order = epoch_order(self.images, self.config.seed, epoch)
        if self.owned:
            return order[order % self.world == self.rank], 0, 1
        return order, self.rank, self.world

    def events(self, step: int) -> set[str]:
        """What follows the first `step` steps.

        Any of log, eval, bound, pictures, film, checkpoint, and after whole epochs refit.
        """
        events = {
            event
            for event in ("log", "eval", "bound", "pictures", "film", "checkpoint")
            if self.config.intervals[event].due(step, self.steps_per_epoch)
        }
        if step % self.steps_per_epoch == 0:
            events.add("refit")
        return events | {"eval", "checkpoint"} if step == self.last_step else events

    def steps_after(self, done: int, split: Split) -> Iterator[tuple[int, list[Batch]]]:
        """(step, this rank's parts of it) for every step after the first `done`."""
        parts = self.config.accumulate
        while done < self.last_step:
            epoch, position = divmod(done, self.steps_per_epoch)
            order, rank, world = self._order(epoch)
            batches = split.batches(
                self.config.batch // (parts * self.world),
                self.device,
                order=order,
                start=position * parts,
                drop_last=True,
                rank=rank,
                world=world,
            )
            for _ in range(min(self.steps_per_epoch - position, self.last_step - done)):
                yield done, list(islice(batches, parts))
                done += 1
