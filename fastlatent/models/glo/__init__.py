"""Generative Latent Optimization: a generator, and one learned code for each training image."""

from fastlatent.models.glo.codes import CodeTable, arithmetic, project
from fastlatent.models.glo.config import GLOConfig
from fastlatent.models.glo.fitting import Fitted, fit_codes
from fastlatent.models.glo.generators import PaperGenerator, SeedGenerator
from fastlatent.models.glo.losses import (
    image_loss,
    laplacian_loss,
    laplacian_pyramid,
    local_moment_loss,
)
from fastlatent.models.glo.model import GLO
from fastlatent.models.glo.principal import Principal, principal_directions

__all__ = [
    "GLO",
    "CodeTable",
    "Fitted",
    "GLOConfig",
    "PaperGenerator",
    "Principal",
    "SeedGenerator",
    "arithmetic",
    "fit_codes",
    "image_loss",
    "laplacian_loss",
    "laplacian_pyramid",
    "local_moment_loss",
    "principal_directions",
    "project",
]
