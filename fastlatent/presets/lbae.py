"""Latent Bernoulli Autoencoders, and the published Gaussian VAE baseline on the same trunk."""

from dataclasses import replace
from typing import Any, cast

from fastlatent.data import DataConfig
from fastlatent.models import LBAEConfig
from fastlatent.presets.config import Preset, TrainConfig


def _lbae(
    name: str,
    description: str,
    model: LBAEConfig,
    data: DataConfig,
    result: str = "",
    **rest: Any,
) -> Preset:
    config = TrainConfig(name=name, model=model, data=data, **rest)
    return Preset(description, config, result=result)


# Settings of the published program (github.com/ok1zjf/LBAE): Adam at a constant rate, batches of
# 512, no augmentation; the incomplete batch of each epoch is left out.
_MNIST = _lbae(
    "lbae-mnist",
    "MNIST as 200 bits, the published model.",
    LBAEConfig(architecture="mnist", dim=200),
    DataConfig(name="mnist", size=32),
    result="Test loss 179 nats per image after one epoch, 91.8 after 4; training has not been "
    "finished.",
    epochs=5000,
    lr=1e-4,
)
_CIFAR10 = _lbae(
    "lbae-cifar10",
    "CIFAR-10 as 600 bits, the published model.",
    LBAEConfig(architecture="cifar10", dim=600),
    DataConfig(name="cifar10"),
    epochs=3000,
)
_CELEBA = _lbae(
    "lbae-celeba",
    "CelebA faces, 64x64, as 1500 bits, the published model.",
    LBAEConfig(architecture="celeba", dim=1500),
    DataConfig(name="celeba", size=64),
    epochs=3900,
)


def _vae(bits: Preset, description: str, dim: int, kl_weight: float, **changes: Any) -> Preset:
    """The Gaussian VAE baseline on the same trunk and data."""
    name = f"{bits.config.name}-vae"
    model = cast(LBAEConfig, bits.config.model)
    model = replace(model, latent="gaussian", dim=dim, kl_weight=kl_weight)
    return Preset(description, replace(bits.config, name=name, model=model, **changes))


LBAE_PRESETS = (
    _lbae(
        "lbae-digits",
        "1,797 handwritten digits as 64 bits, a quarter of the published width; needs no files.",
        LBAEConfig(architecture="mnist", dim=64, width=0.25),
        DataConfig(name="digits", size=32),
        result="Test loss 269.7 nats per image after 105 s on 2 CPU cores.",
        epochs=60,
        batch=64,
        eval_every="5 epochs",
        pictures_every="20 epochs",
        checkpoint_every="10 epochs",
    ),
    _MNIST,
    _CIFAR10,
    _CELEBA,
    _vae(
        _MNIST,
        "The published VAE baseline on MNIST, 20 latents.",
        20,
        10.0,
        epochs=1000,
        weight_decay=1e-4,
        test_batch=512,
    ),
    _vae(
        _CIFAR10,
        "The published VAE baseline on CIFAR-10, 128 latents.",
        128,
        128.0,
        epochs=3900,
    ),
    _vae(
        _CELEBA,
        "The published VAE baseline on CelebA, 64 latents.",
        64,
        64.0,
        epochs=3900,
    ),
)
