"""What a caller of training hears of it while it goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from fastlatent.models import LatentModel

if TYPE_CHECKING:
    from fastlatent.runs.trained import TrainedRun

NAMES = ("on_step", "on_epoch", "on_end")


class Callback:
    """Called while a run is trained; override what is of interest, or hand in any object with one.

    Only the main process calls. What on_step and on_epoch return ends the training if it is True:
    with a checkpoint, the last measurements and the pictures. What a call raises breaks it off.
    """

    def on_step(self, moment: "Moment") -> bool | None:
        """After each optimizer step."""

    def on_epoch(self, moment: "Moment") -> bool | None:
        """After each whole pass over the training images, and what is measured after it."""

    def on_end(self, run: "TrainedRun") -> None:
        """After the training, with the run that it returns."""


@dataclass(frozen=True)
class Moment:
    """Where training is."""

    step: int  # optimizer steps done
    steps: int  # in all
    epoch: float  # passes over the training images done
    model: LatentModel  # as it learns: to be looked at, not changed
    test_loss: float | None  # of these weights, where it has just been measured
    values: Sequence[dict[str, Tensor]]  # of each part of the last step; none of one left out

    @cached_property
    def losses(self) -> dict[str, float]:
        """Means over this process's images of the last step, "loss" among them.

        Waits for the device. Without values where the step was left out.
        """
        sums: dict[str, float] = {}
        for part in self.values:
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(self.values)
        return sums
