"""LaDDer: VAEs under learned priors."""

from dataclasses import replace

from fastlatent.data import DataConfig
from fastlatent.models import LaDDerConfig
from fastlatent.models.ladder import PriorConfig, PriorSchedule
from fastlatent.presets.config import Preset, TrainConfig

# Sizes of the released weights of the published program (arXiv 2009.00088) and its settings; where
# it is known to go wrong, the defaults of LaDDerConfig. docs/ladder.md lists the differences.
_MNIST = TrainConfig(
    name="ladder-mnist",
    model=LaDDerConfig(schedule=PriorSchedule(warmup_epochs=5)),
    data=DataConfig(name="mnist", validation=5000),
    epochs=30,
    batch=256,
    lr=3e-4,
    lr_decay=0.99,
    betas=(0.9, 0.95),
    clip=1000.0,
    skip=10,
    log_every="50 steps",
    keep=2,
)

LADDER_PRESETS = (
    Preset(
        "1,797 handwritten digits as 8 latents, 2 inner ones; needs no files.",
        replace(
            _MNIST,
            name="ladder-digits",
            model=LaDDerConfig(
                width=64,
                dim=8,
                output="sigmoid",
                prior=PriorConfig(width=64, layers=3, components=20),
                schedule=PriorSchedule(warmup_epochs=15, refit_every=5, refit_samples=3000),
            ),
            data=DataConfig(name="digits", size=28),
            epochs=80,
            batch=64,
            lr=2e-3,
            lr_decay=0.98,
            log_every="10 steps",
            eval_every="5 epochs",
            pictures_every="50 epochs",
            checkpoint_every="10 epochs",
        ),
        result="Test -ELBO -1045.0 nats per image, a density, after 96 s of one CPU core.",
    ),
    Preset(
        "MNIST, 16 latents, 2 inner ones.",
        _MNIST,
        result="Test -ELBO -1437 nats per image, a density, after 15 epochs and about 15 minutes "
        "of one CPU core.",
    ),
    Preset(
        "Fashion-MNIST, 32 latents, 2 inner ones.",
        replace(
            _MNIST,
            name="ladder-fashion",
            model=LaDDerConfig(
                architecture="fashion",
                width=512,
                dim=32,
                schedule=PriorSchedule(warmup_epochs=10),
            ),
            data=DataConfig(name="fashion", validation=5000),
        ),
    ),
    Preset(
        "CelebA, 128x128, 256 latents, 32 inner ones.",
        replace(
            _MNIST,
            name="ladder-celeba",
            model=LaDDerConfig(
                image_shape=(3, 128, 128),
                architecture="celeba",
                width=512,
                dim=256,
                output="linear",
                prior=PriorConfig(dim=32),
                schedule=PriorSchedule(
                    warmup_epochs=10,
                    refit_every=5,
                    scale_rate=1.0,
                    prior_rate=0.5,
                    prior_scale_rate=0.8,
                ),
            ),
            data=DataConfig(name="celeba:random", size=128, validation=2000),
            epochs=50,
            batch=64,
            test_batch=250,
            lr=2.5e-4,
        ),
    ),
    Preset(
        "MNIST as in the published settings, its flaws among them: clamped scales, alternating "
        "steps, mixtures fitted to 2,048 latents, 8 latents.",
        replace(
            _MNIST,
            name="ladder-mnist-original",
            model=LaDDerConfig(
                dim=8,
                posterior_std="relu",
                image_scale="max_floor",
                prior=PriorConfig(
                    scale="fixed",
                    draws=100,
                    free_pseudo_images=True,
                    ridge=0.01,
                    original_fit=True,
                ),
                schedule=PriorSchedule(
                    warmup_epochs=5,
                    refit_samples=2048,
                    alternate=True,
                    mask_from=50,
                    mask_above=1.0,
                    prior_decay=1.01,
                ),
            ),
            data=DataConfig(name="mnist"),
            clip=None,
            clip_value=1.0,
        ),
    ),
)
