"""Whether a model can learn from single images."""

import copy

import torch

from fastlatent.data import Split
from fastlatent.inference.latents import unit_images
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.models import AlternatingStep, LatentModel
from fastlatent.models.capabilities import LearnsLatents, alternating_steps_of
from fastlatent.noise import Noise
from fastlatent.presets import TrainConfig


def check_parts(config: TrainConfig, model: LatentModel, train: Split, world: int) -> None:
    """UsageError where parts of a step hold one image each and the model needs more.

    Batch normalisation has no variance of a single number per channel.
    """
    if config.batch > config.accumulate * world:
        return
    device = next(model.parameters()).device
    trial = copy.deepcopy(model).train()
    image = unit_images(train, torch.zeros(1, dtype=torch.int64), device)
    learned = {"latents": torch.zeros(1, model.latent_dim, device=device)}
    given = learned if isinstance(model, LearnsLatents) else {}
    for step in alternating_steps_of(trial) or (AlternatingStep("", (trial,)),):
        options = {"alternating_step": step.name} if step.name else {}
        try:
            with torch.no_grad():
                trial(image, noise=Noise(config.seed, 0), **options, **given)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            least = 2 * config.accumulate * world
            raise UsageError(
                f"{setting('batch', config.batch)} leaves one image to each part of a step, and "
                f"batch normalisation needs more: {setting('batch')} must be at least {least}"
            ) from None
