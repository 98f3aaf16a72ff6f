"""What a training step minimises: the model's loss, or one loss after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastlatent.models import AlternatingStep, LatentModel
from fastlatent.models.capabilities import Staged, alternating_steps_of
from fastlatent.noise import Noise

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective(nn.Module):
    """Means of the model's per-image values, "loss" among them.

    A module of its own, so that mixed precision, DDP and torch.compile wrap it and leave alone the
    model, which evaluation uses in full precision.
    """

    def __init__(self, model: LatentModel, alternating: AlternatingStep):
        super().__init__()
        self.model = model
        self.staged = isinstance(model, Staged)
        self.options = {"alternating_step": alternating.name} if alternating.name else {}

    def forward(self, images: Tensor, noise: Noise, **given: Tensor) -> dict[str, Tensor]:
        values = self.model(images, noise=noise, **self.options, **given)
        means = {name: value.mean() for name, value in values.items()}
        if self.staged and dist.is_initialized() and self.model.frozen:
            # DDP waits for a gradient of every weight, also of frozen ones that the loss leaves
            # out.
            moved = (weight for weight in self.model.parameters() if weight.requires_grad)
            means["loss"] = means["loss"] + 0 * torch.stack([w.sum() for w in moved]).sum()
        return means


class ParameterGroup(NamedTuple):
    """Weights of an alternating step that learn at one rate."""

    weights: list[nn.Parameter]
    rate: float  # factor of the learning rate
    decay: float | None  # factor after each epoch; None: that of all


class StepObjective:
    """What an alternating step minimises, and the weights that it optimises."""

    def __init__(self, model: LatentModel, step: AlternatingStep, accelerator: "Accelerator"):
        self.name = step.name
        modules = step.modules
        weights = {id(weight): weight for part in modules for weight in part.parameters()}
        optimised = set(weights)
        self.groups: list[ParameterGroup] = []
        for group in model.groups if isinstance(model, Staged) else ():
            members = {id(weight) for part in group.modules for weight in part.parameters()}
            own = [weights.pop(key) for key in [*weights] if key in members]
            if own:
                rate = step.rate * group.rate
                self.groups.append(ParameterGroup(own, rate, group.decay))
        if weights:
            self.groups.insert(0, ParameterGroup([*weights.values()], step.rate, None))
        self._others = [weight for weight in model.parameters() if id(weight) not in optimised]
        # DDP waits for the gradients of the weights that take any when it is made.
        with self.alone():
            self.objective = accelerator.prepare(Objective(model, step))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No gradient is computed for weights of other alternating steps."""
        for weight in self._others:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in self._others:
                weight.requires_grad_(True)

    def labelled(self, values: dict[str, Tensor], norm: Tensor) -> dict[str, Tensor]:
        """The values to log and the gradient's norm; loss and norm carry the step's name."""
        values = {**values, "gradient_norm": norm}
        if not self.name:
            return values
        shared = ("loss", "gradient_norm")
        return {f"{self.name}_{k}" if k in shared else k: v for k, v in values.items()}


def step_objectives(model: LatentModel, accelerator: "Accelerator") -> list[StepObjective]:
    """The alternating steps of a model; most models have one step, which has no name."""
    steps = alternating_steps_of(model) or (AlternatingStep("", (model,)),)
    return [StepObjective(model, step, accelerator) for step in steps]


def total(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The values of all alternating steps; "loss" is their sum where there are several."""
    values = {name: value for part in parts for name, value in part.items()}
    if "loss" not in values:
        losses = [value for name, value in values.items() if name.endswith("_loss")]
        values["loss"] = torch.stack(losses).sum()
    return values
