"""Generative Latent Optimization, in the paper's style and in that of the original program."""

from dataclasses import replace
from typing import Any

from fastlatent.data import DataConfig
from fastlatent.models import GLOConfig
from fastlatent.models.glo.config import Initial
from fastlatent.presets.config import Preset, TrainConfig


def _paper(name: str, data: DataConfig, channels: int, side: int, epochs: int) -> TrainConfig:
    """Rates and loss as in the paper's reimplementations; 28x28 images get a border of 2."""
    return TrainConfig(
        name=name,
        model=GLOConfig(image_shape=(channels, side, side)),
        data=data,
        epochs=epochs,
        batch=128,
        test_batch=500,
        optimizer="sgd",
        lr=1.0,
        test_images=500,
        pictures_every="5 epochs",
        film_every="1 epoch",
        keep=2,
    )


def _seed(
    paper: TrainConfig,
    dim: int,
    alpha: float,
    batch: int = 16,
    initial: Initial = "uniform",
    **settings: Any,  # of training
) -> TrainConfig:
    """The same data in the style of github.com/clvrai/Generative-Latent-Optimization-Tensorflow.

    Latents, their start and rates as its page gives them for each data set; 100,000 steps.
    """
    channels, side, _ = paper.model.image_shape
    grey = channels == 1
    side = 28 if grey else side
    model = GLOConfig(
        image_shape=(channels, side, side),
        architecture="seed",
        dim=dim,
        projection="sphere",
        initial=initial,
        order="alternating",
        alpha=alpha,
        loss="moments",
        sampling="unit",
    )
    config = replace(
        paper,
        name=f"{paper.name}-seed",
        model=model,
        data=replace(paper.data, size=28) if grey else paper.data,
        batch=batch,
        steps=100_000,
        optimizer="adam",
        lr=1e-4,
        clip=20.0,
        log_every="100 steps",
    )
    return replace(config, **settings)


def _preset(description: str, paper: TrainConfig, seed: TrainConfig, result: str = "") -> Preset:
    return Preset(description, paper, {"paper": paper, "seed": seed}, result)


_GREY = _paper("glo-mnist", DataConfig(name="mnist", size=32), 1, 32, epochs=12)
# At a rate of 1 the first steps, all towards black, saturate tanh for good. Adam as in Y. Hoshen,
# K. Li, J. Malik, arXiv 1812.08985.
_MNIST = replace(
    _GREY,
    model=GLOConfig(image_shape=_GREY.model.image_shape, initial_weights="normal"),
    optimizer="adam",
    lr=1e-3,
    betas=(0.5, 0.999),
    lr_decay=0.5,
    lr_decay_every="3 epochs",
)
_SVHN = _paper("glo-svhn", DataConfig(name="svhn"), 3, 32, epochs=25)
_CIFAR10 = _paper("glo-cifar10", DataConfig(name="cifar10"), 3, 32, epochs=25)
_CELEBA = _paper("glo-celeba", DataConfig(name="celeba", size=64), 3, 64, epochs=25)
_DIGITS = replace(
    _paper("glo-digits", DataConfig(name="digits", size=32), 1, 32, epochs=40),
    model=GLOConfig(width=0.25, dim=16, fit_steps=50, fit_starts=2),
    batch=64,
    eval_every="never",
    test_images=None,
    pictures_every="never",
    checkpoint_every="10 epochs",
)
_DIGITS_SEED = replace(
    _seed(_DIGITS, dim=10, alpha=5.0, batch=32), steps=4000, lr=1e-3, log_every="10 steps"
)

GLO_PRESETS = (
    _preset(
        "1,797 handwritten digits, 16 latents, a quarter of the published width; needs no files.",
        _DIGITS,
        _DIGITS_SEED,
        "Laplacian L1 of test images 0.048, of training images 0.082, in under 2 minutes.",
    ),
    _preset(
        "MNIST.",
        _MNIST,
        _seed(_GREY, dim=10, alpha=5.0, batch=32, initial="pca"),
        "Laplacian L1 of training images 0.018 after 11.5 epochs, about 2 minutes each on one CPU "
        "core. Samples of a gmm prior fitted afterwards: FD(classifier) 0.69.",
    ),
    _preset(
        "SVHN.",
        _SVHN,
        _seed(_SVHN, dim=25, alpha=10.0, lr_decay=0.5, lr_decay_every="10000 steps"),
    ),
    _preset(
        "CIFAR-10.",
        _CIFAR10,
        _seed(_CIFAR10, dim=35, alpha=10.0, initial="gaussian", lr=1e-5),
    ),
    Preset("CelebA faces, 64x64.", _CELEBA, {"paper": _CELEBA}),
)
