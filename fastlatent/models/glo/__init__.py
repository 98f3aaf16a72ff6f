"""Generative Latent Optimization: a generator and the learned latents of its images."""

from fastlatent.models.glo.config import GLOConfig
from fastlatent.models.glo.fitting import Fitted, fit_latents
from fastlatent.models.glo.generators import PaperGenerator, SeedGenerator
from fastlatent.models.glo.losses import (
    image_loss,
    laplacian_loss,
    laplacian_pyramid,
    local_moment_loss,
)
from fastlatent.models.glo.model import GLO
from fastlatent.models.glo.principal import Principal, principal_directions
from fastlatent.models.glo.table import LatentTable, arithmetic, project

__all__ = [
    "GLO",
    "Fitted",
    "GLOConfig",
    "LatentTable",
    "PaperGenerator",
    "Principal",
    "SeedGenerator",
    "arithmetic",
    "fit_latents",
    "image_loss",
    "laplacian_loss",
    "laplacian_pyramid",
    "local_moment_loss",
    "principal_directions",
    "project",
]
