"""Model families. `build` makes a model from its configuration, with seeded weights."""

from fastlatent.files.code import Code
from fastlatent.models.autoencoder import AutoEncoder
from fastlatent.models.base import LatentModel
from fastlatent.models.bigan import BiGAN, BiGANConfig
from fastlatent.models.capabilities import AlternatingStep, Group
from fastlatent.models.glo import GLO, GLOConfig
from fastlatent.models.ladder import LaDDer, LaDDerConfig
from fastlatent.models.lbae import LBAE, LBAEConfig
from fastlatent.models.lvae import LadderVAE, LVAEConfig
from fastlatent.models.own import OwnConfig, build_own
from fastlatent.models.vae import VAE, VAEConfig
from fastlatent.nn import seeded

ModelConfig = (
    LBAEConfig | LVAEConfig | VAEConfig | BiGANConfig | GLOConfig | LaDDerConfig | OwnConfig
)
MODELS: dict[str, tuple[type, type[LatentModel]]] = {
    "lbae": (LBAEConfig, LBAE),
    "lvae": (LVAEConfig, LadderVAE),
    "vae": (VAEConfig, VAE),
    "bigan": (BiGANConfig, BiGAN),
    "glo": (GLOConfig, GLO),
    "ladder": (LaDDerConfig, LaDDer),
}


def build(config: ModelConfig, seed: int, code: Code | None = None) -> LatentModel:
    """The model of `config`, on the CPU; the same seed gives the same weights.

    A model of one's own takes the `code` that the user has named. Raises ValueError for an unknown
    family, for such code that is missing, and for sizes beyond what a tensor can have.
    """
    if isinstance(config, OwnConfig):
        with seeded(seed):
            return build_own(config, code or Code())
    if config.family not in MODELS:
        raise ValueError(f"build: family must be one of {', '.join(MODELS)}; got {config.family!r}")
    try:
        with seeded(seed):
            return MODELS[config.family][1](config)
    except (OverflowError, RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise ValueError(f"build: a model of these sizes cannot be built: {config}") from None


def model_title(config: ModelConfig) -> str:
    """What a model is called: its family, or the class of one's own."""
    return config.title if isinstance(config, OwnConfig) else config.family


__all__ = [
    "GLO",
    "LBAE",
    "MODELS",
    "VAE",
    "AlternatingStep",
    "AutoEncoder",
    "BiGAN",
    "BiGANConfig",
    "GLOConfig",
    "Group",
    "LBAEConfig",
    "LVAEConfig",
    "LaDDer",
    "LaDDerConfig",
    "LadderVAE",
    "LatentModel",
    "ModelConfig",
    "OwnConfig",
    "VAEConfig",
    "build",
    "model_title",
]
