"""VAEs whose latent geometry is studied."""

from dataclasses import replace

from fastlatent.data import DataConfig
from fastlatent.models import VAEConfig
from fastlatent.presets.config import Preset, TrainConfig

# Settings of the published program (github.com/mmichelis/GenerativeLatentSpace): the first 3,000
# training images of each class, batches of 16, 200 epochs, Adam at a rate that falls by 5 % after
# each.
_MNIST = TrainConfig(
    name="vae-mnist",
    model=VAEConfig(),
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


def _like_mnist(
    name: str, description: str, data: DataConfig, dim: int = 16, result: str = ""
) -> Preset:
    config = replace(_MNIST, name=name, data=data, model=VAEConfig(dim=dim))
    return Preset(description, config, result=result)


VAE_PRESETS = (
    Preset(
        "1,797 handwritten digits as 16 latents; needs no files.",
        replace(
            _MNIST,
            name="vae-digits",
            model=VAEConfig(samples=1),
            data=DataConfig(name="digits", size=28),
            epochs=45,
            batch=32,
            lr_decay=0.93,
            log_every="10 steps",
            eval_every="5 epochs",
            checkpoint_every="10 epochs",
        ),
        result="Test loss 935.7 nats per image after 96 s on 2 CPU cores.",
    ),
    Preset("MNIST as 16 latents, the published model.", _MNIST),
    _like_mnist(
        "vae-mnist-2d",
        "Digits 2, 4, 5 and 7 of MNIST as 2 latents, the published protocol of shorter curves.",
        DataConfig(name="mnist", classes=(2, 4, 5, 7), per_class=3000),
        dim=2,
        result="Test loss 961.0 nats after 40 epochs.",
    ),
    _like_mnist(
        "vae-fashion",
        "Fashion-MNIST as 16 latents.",
        DataConfig(name="fashion", per_class=3000),
    ),
    _like_mnist(
        "vae-emnist",
        "EMNIST, digits and letters of both cases, as 16 latents.",
        DataConfig(name="emnist:byclass", per_class=3000),
    ),
)
