"""Training configurations: what can be set, and named starting points."""

from fastlatent.presets.config import Interval, Preset, TrainConfig
from fastlatent.presets.lbae import LBAE_PRESETS
from fastlatent.presets.lvae import LVAE_PRESETS
from fastlatent.presets.vae import VAE_PRESETS

DEFAULT_PRESET = "lbae-digits"
PRESETS: dict[str, Preset] = {
    preset.config.name: preset for preset in (*LBAE_PRESETS, *LVAE_PRESETS, *VAE_PRESETS)
}

__all__ = ["DEFAULT_PRESET", "PRESETS", "Interval", "Preset", "TrainConfig"]
