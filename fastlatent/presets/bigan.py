"""BiGANs whose latent geometry is studied."""

from dataclasses import replace

from fastlatent.data import DataConfig
from fastlatent.models import BiGANConfig
from fastlatent.presets.config import Preset, TrainConfig

# Settings of the published program, as of the VAEs; the discriminator learns at 3e-3.
_MNIST = TrainConfig(
    name="bigan-mnist",
    model=BiGANConfig(),
    data=DataConfig(name="mnist", per_class=3000),
    epochs=200,
    batch=16,
    test_batch=500,
    lr=5e-3,
    lr_decay=0.95,
    weight_decay=1e-4,
    log_every="100 steps",
    keep=2,
)


def _like_mnist(name: str, description: str, data: DataConfig) -> Preset:
    return Preset(description, replace(_MNIST, name=name, data=data))


BIGAN_PRESETS = (
    Preset(
        "1,797 handwritten digits as 16 latents; needs no files. The images are so few that "
        "the discriminator memorises them, and digits stay blurred.",
        replace(
            _MNIST,
            name="bigan-digits",
            model=BiGANConfig(discriminator_rate=4.0),
            data=DataConfig(name="digits", size=28),
            epochs=45,
            batch=32,
            lr=1e-3,
            lr_decay=0.94,
            log_every="10 steps",
            eval_every="5 epochs",
            checkpoint_every="10 epochs",
            pictures_every="20 epochs",
        ),
        result="Squared error of reconstructions 0.29.",
    ),
    Preset("MNIST as 16 latents, the published model.", _MNIST),
    _like_mnist(
        "bigan-fashion", "Fashion-MNIST as 16 latents.", DataConfig(name="fashion", per_class=3000)
    ),
    _like_mnist(
        "bigan-emnist",
        "EMNIST, digits and letters of both cases, as 16 latents.",
        DataConfig(name="emnist:byclass", per_class=3000),
    ),
)
