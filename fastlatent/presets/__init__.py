"""Training configurations: what can be set, and named starting points."""

from fastlatent.presets.bigan import BIGAN_PRESETS
from fastlatent.presets.config import Interval, Preset, TrainConfig
from fastlatent.presets.glo import GLO_PRESETS
from fastlatent.presets.ladder import LADDER_PRESETS
from fastlatent.presets.lbae import LBAE_PRESETS
from fastlatent.presets.lvae import LVAE_PRESETS
from fastlatent.presets.vae import VAE_PRESETS

DEFAULT_PRESET = "lbae-digits"
_FAMILIES = (
    LBAE_PRESETS,
    LVAE_PRESETS,
    VAE_PRESETS,
    BIGAN_PRESETS,
    GLO_PRESETS,
    LADDER_PRESETS,
)
PRESETS: dict[str, Preset] = {
    preset.config.name: preset for presets in _FAMILIES for preset in presets
}

__all__ = ["DEFAULT_PRESET", "PRESETS", "Interval", "Preset", "TrainConfig"]
