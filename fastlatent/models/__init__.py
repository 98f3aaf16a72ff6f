"""Model families. `build` makes a model from its configuration, with seeded weights."""

from fastlatent.models.base import LatentModel
from fastlatent.models.lbae import LBAE, LBAEConfig
from fastlatent.nn import seeded

MODELS: dict[str, tuple[type, type[LatentModel]]] = {"lbae": (LBAEConfig, LBAE)}


def build(config: LBAEConfig, seed: int) -> LatentModel:
    """The model of `config`, on the CPU; the same seed gives the same weights."""
    if config.family not in MODELS:
        raise ValueError(f"build: family must be one of {', '.join(MODELS)}; got {config.family!r}")
    with seeded(seed):
        return MODELS[config.family][1](config)


__all__ = ["LBAE", "MODELS", "LBAEConfig", "LatentModel", "build"]
