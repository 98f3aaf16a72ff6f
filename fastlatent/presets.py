"""Training configurations: what can be set, and named starting points."""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fastlatent.data import DataConfig
from fastlatent.models import LBAEConfig, LVAEConfig, ModelConfig


@dataclass(frozen=True)
class Interval:
    """How often something happens, counted in optimizer steps or in epochs; 0 means never."""

    count: int
    unit: Literal["step", "epoch"]

    @staticmethod
    def parse(text: str) -> "Interval":
        """From "50 steps", "2 epochs", "50" (steps) or "never"."""
        match = re.fullmatch(r"\s*(\d+)\s*(steps?|epochs?)?\s*", text)
        if text.strip() == "never":
            return Interval(0, "step")
        if match is None:
            raise ValueError(
                f'an interval must read like "50 steps", "2 epochs" or "never"; got {text!r}'
            )
        unit = "epoch" if (match[2] or "").startswith("epoch") else "step"
        return Interval(int(match[1]), unit)

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether it happens once `step` optimizer steps are done."""
        every = self.count * (steps_per_epoch if self.unit == "epoch" else 1)
        return every > 0 and step % every == 0


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The options of the model and of the data are listed below."""

    name: str
    """Name of the run: without --out it goes to the folder runs/NAME."""
    model: ModelConfig
    data: DataConfig
    seed: int = 12345
    """Seed of weights, order and noise; the same seed gives the same run."""
    epochs: int = 10
    """Passes over the training images."""
    steps: int | None = None
    """Stop after this many optimizer steps instead of after --epochs."""
    batch: int = 512
    """Images in one optimizer step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Compute each step in this many parts, to save memory."""
    test_batch: int = 1024
    """Images per process at a time where no gradient is needed."""
    optimizer: Literal["adam", "adamax"] = "adam"
    """Adam, or its variant that scales by the largest recent gradient."""
    lr: float = 1e-3
    """Learning rate, constant."""
    weight_decay: float = 0.0
    """Factor of the L2 penalty that the optimizer adds to the gradient."""
    clip: float | None = None
    """Scale the gradient down to this norm where it is longer."""
    skip: int = 0
    """Leave out steps whose loss or gradient is infinite or NaN, up to so many in a row, and count
    them; 0: stop at the first. The loss scaler of fp16 leaves out up to 40 in any case."""
    ema: float | None = None
    """Keep an exponential moving average of the weights with this decay (such as 0.999) and
    evaluate, save and sample that."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass; weights and evaluation stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    compile: bool = False
    """Compile the training step with torch.compile: slow to start, then faster."""
    deterministic: bool = True
    """Let cuDNN use only algorithms that repeat to the bit, as an exact resume on a GPU needs."""
    log_every: str = "10 steps"
    """Interval of the logged training loss: "50 steps", "1 epoch" or "never"."""
    eval_every: str = "1 epoch"
    """Interval of the test loss; it is measured at the end in any case."""
    bound_every: str = "never"
    """Interval of the importance-weighted bound on the test log-likelihood, where the model has
    one."""
    bound_samples: int = 100
    """Draws of the latents for each image in that bound."""
    bound_images: int | None = None
    """Measure that bound on the first so many test images; default: on all."""
    pictures_every: str = "10 epochs"
    """Interval of reconstructions, samples and interpolations; drawn at the end in any case."""
    checkpoint_every: str = "1 epoch"
    """Interval of checkpoints to resume from; one is written at the end in any case."""
    keep: int = 3
    """How many of the newest checkpoints to keep."""
    picture_codes: int = 10_000
    """Training images whose codes the samples drawn during training are fitted to."""

    def __post_init__(self) -> None:
        def require(good: bool, name: str, expectation: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {expectation}; got {getattr(self, name)!r}")

        require(re.fullmatch(r"[\w.-]+", self.name) is not None, "name", "letters, digits, . _ -")
        counts = ("epochs", "batch", "accumulate", "test_batch", "keep", "picture_codes")
        for name in (*counts, "bound_samples"):
            require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("steps", "bound_images"):
            count = getattr(self, name)
            require(count is None or count >= 1, name, "at least 1")
        parts = f"a multiple of accumulate ({self.accumulate})"
        require(self.batch % self.accumulate == 0, "batch", parts)
        require(0 < self.lr < float("inf"), "lr", "positive")
        require(self.weight_decay >= 0, "weight_decay", "at least 0")
        require(self.optimizer in ("adam", "adamax"), "optimizer", "adam or adamax")
        require(self.skip >= 0, "skip", "at least 0")
        require(self.clip is None or self.clip > 0, "clip", "positive")
        require(self.ema is None or 0 < self.ema < 1, "ema", "between 0 and 1")
        for interval in fields(self):
            if interval.name.endswith("_every"):
                try:
                    Interval.parse(getattr(self, interval.name))
                except ValueError as error:
                    raise ValueError(f"{interval.name}: {error}") from None


@dataclass(frozen=True)
class Preset:
    """A named starting point; every field of its configuration can be overridden."""

    description: str
    config: TrainConfig


DEFAULT_PRESET = "lbae-digits"


def _lbae(name: str, description: str, model: LBAEConfig, data: DataConfig, **rest: Any) -> Preset:
    return Preset(description, TrainConfig(name=name, model=model, data=data, **rest))


# Settings of the published program (github.com/ok1zjf/LBAE): Adam at a constant rate, batches of
# 512, no augmentation; the incomplete batch of each epoch is left out.
_MNIST = _lbae(
    "lbae-mnist",
    "MNIST as 200 bits, the published model. Test loss 179 nats per image after one epoch, 12 "
    "minutes on 2 CPU cores; not trained to the end yet.",
    LBAEConfig(architecture="mnist", dim=200),
    DataConfig(name="mnist", size=32),
    epochs=5000,
    lr=1e-4,
)
_CIFAR10 = _lbae(
    "lbae-cifar10",
    "CIFAR-10 as 600 bits, the published model. Result and time: not measured yet.",
    LBAEConfig(architecture="cifar10", dim=600),
    DataConfig(name="cifar10"),
    epochs=3000,
)
_CELEBA = _lbae(
    "lbae-celeba",
    "CelebA faces, 64x64, as 1500 bits, the published model. Result and time: not measured yet.",
    LBAEConfig(architecture="celeba", dim=1500),
    DataConfig(name="celeba", size=64),
    epochs=3900,
)


def _vae(bits: Preset, description: str, dim: int, kl_weight: float, **changes: Any) -> Preset:
    """The Gaussian VAE baseline on the same trunk and data."""
    name = f"{bits.config.name}-vae"
    model = replace(bits.config.model, latent="gaussian", dim=dim, kl_weight=kl_weight)
    return Preset(description, replace(bits.config, name=name, model=model, **changes))


def _lvae(
    name: str,
    description: str,
    data: DataConfig,
    image_shape: tuple[int, int, int],
    downsample: tuple[int, ...],
    epochs: int,
    test_batch: int = 1000,
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
    return Preset(f"{description} Result and time: not measured yet.", training)


_STATIC_MNIST = DataConfig(name="static-mnist")
_MNIST_3, _MNIST_6 = (1, 1, 1), (0, 1, 0, 1, 0, 1)
_15 = (0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0)
_64_PIXELS_12 = (0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0)

_LVAE_PRESETS = (
    _lvae(
        "lvae-static-mnist-3",
        "Binarised MNIST, 3 layers (published: -ELBO 82.14, 79.47 by 100 samples).",
        _STATIC_MNIST,
        (1, 28, 28),
        _MNIST_3,
        epochs=400,
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

_PRESETS = (
    _lbae(
        "lbae-digits",
        "1,797 handwritten digits as 64 bits, a quarter of the published width; needs no files. "
        "Test loss 269.5 nats per image after 105 s on 2 CPU cores.",
        LBAEConfig(architecture="mnist", dim=64, width=0.25),
        DataConfig(name="digits", size=32),
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
        "The published VAE baseline on MNIST, 20 latents. Result and time: not measured yet.",
        20,
        10.0,
        epochs=1000,
        weight_decay=1e-4,
        test_batch=512,
    ),
    _vae(
        _CIFAR10,
        "The published VAE baseline on CIFAR-10, 128 latents. Result and time: not measured yet.",
        128,
        128.0,
        epochs=3900,
    ),
    _vae(
        _CELEBA,
        "The published VAE baseline on CelebA, 64 latents. Result and time: not measured yet.",
        64,
        64.0,
        epochs=3900,
    ),
    Preset(
        "1,797 handwritten digits, a ladder of 3 small layers; needs no files. Test -ELBO 286.0 "
        "nats, 282.2 by 1,000 samples (greys as probabilities), after 4 min 25 s on 2 CPU cores.",
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
    ),
    *_LVAE_PRESETS,
)
PRESETS: dict[str, Preset] = {preset.config.name: preset for preset in _PRESETS}
