"""How to train a model that nobody here wrote."""

from fastlatent.data import DataConfig
from fastlatent.models.own import OwnConfig, registered_config
from fastlatent.presets.config import TrainConfig

_BATCH = 128  # images in a step


def own_settings(name: str, model: OwnConfig, data: DataConfig) -> TrainConfig:
    """The usual settings."""
    return TrainConfig(name, model, data, batch=_BATCH)


def registered_settings(name: str) -> TrainConfig | None:
    """Those of a model that an installed package registers; None where there is none."""
    model = registered_config(name)
    return None if model is None else own_settings(name, model, DataConfig())
