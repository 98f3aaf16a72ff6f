"""Ladder VAEs."""

from fastlatent.data import DataConfig
from fastlatent.models import LVAEConfig
from fastlatent.presets.config import Preset, TrainConfig


def _lvae(
    name: str,
    description: str,
    data: DataConfig,
    image_shape: tuple[int, int, int],
    downsample: tuple[int, ...],
    epochs: int,
    test_batch: int = 1000,
    result: str = "",
) -> Preset:
    """A model with the published switches (github.com/addtt/ladder-vae-pytorch) and its optimizer.

    The length of the published runs is not known, nor are the levels that halve the size, but for
    3 and for 12 layers of MNIST: the epochs and those places are ours.
    """
    colour = data.name in ("svhn", "cifar10", "celeba:valid")
    model = LVAEConfig(
        image_shape=image_shape,
        likelihood="discretized_logistic_mixture" if colour else "bernoulli",
        zdims=(32,) * len(downsample),
        downsample=downsample,
        free_bits=0.5 if len(downsample) <= 6 else 1.0,
    )
    training = TrainConfig(
        name=name,
        model=model,
        data=data,
        epochs=epochs,
        batch=64,
        test_batch=test_batch,
        optimizer="adamax",
        lr=3e-4,
        skip=10,
        log_every="100 steps",
        bound_every="50000 steps",
        keep=2,
    )
    return Preset(description, training, result=result)


_STATIC_MNIST = DataConfig(name="static-mnist")
_MNIST_3, _MNIST_6 = (1, 1, 1), (0, 1, 0, 1, 0, 1)
_15 = (0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0)
_64_PIXELS_12 = (0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0)

LVAE_PRESETS = (
    Preset(
        "1,797 handwritten digits, a ladder of 3 small layers; needs no files.",
        TrainConfig(
            name="lvae-digits",
            model=LVAEConfig(
                zdims=(4, 8, 8),
                blocks=1,
                filters=16,
                dropout=0.1,
            ),
            data=DataConfig(name="digits", size=28),
            epochs=60,
            batch=64,
            optimizer="adamax",
            lr=3e-3,
            skip=10,
            eval_every="5 epochs",
            pictures_every="20 epochs",
            checkpoint_every="10 epochs",
        ),
        result="Test -ELBO 286.0 nats, 282.2 by 1,000 samples (greys as probabilities), after "
        "2 min 5 s of processor time.",
    ),
    _lvae(
        "lvae-static-mnist-3",
        "Binarised MNIST, 3 layers (published: -ELBO 82.14, 79.47 by 100 samples).",
        _STATIC_MNIST,
        (1, 28, 28),
        _MNIST_3,
        epochs=400,
        result="Test -ELBO 91.0 after 11 epochs, 13 minutes each on one CPU core.",
    ),
    _lvae(
        "lvae-static-mnist-6",
        "Binarised MNIST, 6 layers (published: -ELBO 80.74, 78.65 by 100 samples).",
        _STATIC_MNIST,
        (1, 28, 28),
        _MNIST_6,
        epochs=400,
    ),
    _lvae(
        "lvae-static-mnist-12",
        "Binarised MNIST, 12 layers (published: -ELBO 80.50, 78.50 by 100 samples).",
        _STATIC_MNIST,
        (1, 28, 28),
        (0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0),
        epochs=400,
    ),
    _lvae(
        "lvae-svhn-15",
        "SVHN, 15 layers (published: 1.88 bits per dimension).",
        DataConfig(name="svhn"),
        (3, 32, 32),
        _15,
        epochs=200,
    ),
    _lvae(
        "lvae-cifar10-3",
        "CIFAR-10, 3 layers (published: 3.59 bits per dimension).",
        DataConfig(name="cifar10"),
        (3, 32, 32),
        _MNIST_3,
        epochs=400,
    ),
    _lvae(
        "lvae-cifar10-6",
        "CIFAR-10, 6 layers (published: 3.44 bits per dimension).",
        DataConfig(name="cifar10"),
        (3, 32, 32),
        _MNIST_6,
        epochs=400,
    ),
    _lvae(
        "lvae-cifar10-15",
        "CIFAR-10, 15 layers (published: 3.35 bits per dimension).",
        DataConfig(name="cifar10"),
        (3, 32, 32),
        _15,
        epochs=400,
    ),
    _lvae(
        "lvae-celeba-20",
        "CelebA, 64x64, 20 layers (published: 2.35 bits per dimension, on the validation images).",
        DataConfig(name="celeba:valid", size=64, crop=148),
        (3, 64, 64),
        (0, 0, 0, 0, 1) * 4,
        epochs=100,
        test_batch=250,
    ),
    _lvae(
        "lvae-multi-dsprites",
        "Up to two coloured sprites, 64x64, 12 layers (published: -ELBO 26.9 nats).",
        DataConfig(name="multi-dsprites"),
        (3, 64, 64),
        _64_PIXELS_12,
        epochs=100,
        test_batch=250,
    ),
    _lvae(
        "lvae-multi-mnist",
        "Up to two digits, 64x64, 12 layers.",
        DataConfig(name="multi-mnist"),
        (1, 64, 64),
        _64_PIXELS_12,
        epochs=100,
        test_batch=250,
    ),
)
