"""What a training step minimises: the model's loss, or one loss after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastlatent.models import LatentModel, Turn
from fastlatent.models.capabilities import Staged, turns_of
from fastlatent.noise import Noise

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective(nn.Module):
    """Means of the model's per-image values, "loss" among them.

    A module of its own, so that mixed precision, DDP and torch.compile wrap it and leave alone the
    model, which evaluation uses in full precision.
    """

    def __init__(self, model: LatentModel, turn: Turn):
        super().__init__()
        self.model = model
        self.staged = isinstance(model, Staged)
        self.options = {"turn": turn.name} if turn.name else {}

    def forward(self, images: Tensor, noise: Noise, **given: Tensor) -> dict[str, Tensor]:
        values = self.model(images, noise=noise, **self.options, **given)
        means = {name: value.mean() for name, value in values.items()}
        if self.staged and dist.is_initialized() and self.model.resting:
            # DDP waits for a gradient of every weight, also of those that are out of use.
            moved = (weight for weight in self.model.parameters() if weight.requires_grad)
            means["loss"] = means["loss"] + 0 * torch.stack([w.sum() for w in moved]).sum()
        return means


class Rated(NamedTuple):
    """Weights of a turn that learn at one rate."""

    weights: list[nn.Parameter]
    rate: float  # factor of the learning rate
    decay: float | None  # factor after each epoch; None: that of all


class Move:
    """A turn of the training step at work: the weights that it moves, and what they go down."""

    def __init__(self, model: LatentModel, turn: Turn, accelerator: "Accelerator"):
        self.name = turn.name
        weights = {id(weight): weight for part in turn.modules for weight in part.parameters()}
        moved = set(weights)
        self.rated = []
        for group in model.groups if isinstance(model, Staged) else ():
            members = {id(weight) for part in group.modules for weight in part.parameters()}
            own = [weights.pop(key) for key in [*weights] if key in members]
            if own:
                self.rated.append(Rated(own, turn.rate * group.rate, group.decay))
        if weights:
            self.rated.insert(0, Rated([*weights.values()], turn.rate, None))
        self._others = [weight for weight in model.parameters() if id(weight) not in moved]
        # DDP waits for the gradients of the weights that take any when it is made.
        with self.alone():
            self.objective = accelerator.prepare(Objective(model, turn))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No gradient is computed for weights of other turns."""
        for weight in self._others:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self._others:
                weight.requires_grad_(True)

    def labelled(self, values: dict[str, Tensor], norm: Tensor) -> dict[str, Tensor]:
        """The values to log, with the gradient's norm; those that every turn has by its name."""
        values = {**values, "gradient_norm": norm}
        if not self.name:
            return values
        shared = ("loss", "gradient_norm")
        return {f"{self.name}_{k}" if k in shared else k: v for k, v in values.items()}


def moves(model: LatentModel, accelerator: "Accelerator") -> list[Move]:
    """The turns of a model's training step; most models have but one, which has no name."""
    turns = turns_of(model) or (Turn("", (model,)),)
    return [Move(model, turn, accelerator) for turn in turns]


def total(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The values of all turns together; "loss" is the sum of theirs where there are several."""
    values = {name: value for part in parts for name, value in part.items()}
    if "loss" not in values:
        losses = [value for name, value in values.items() if name.endswith("_loss")]
        values["loss"] = torch.stack(losses).sum()
    return values
