"""Bidirectional GAN: a generator, an encoder, and a discriminator of pairs (image, latents).

J. Donahue, P. Krähenbühl, T. Darrell, "Adversarial Feature Learning", ICLR 2017, arXiv 1605.09782;
layers and settings of M. Y. Michelis and Q. Becker, "On Linear Interpolation in the Latent Space
of Deep Generative Models", ICLR 2021 workshop GTRL, arXiv 2105.03663.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.jobs.naming import require
from fastlatent.models.base import LatentModel
from fastlatent.models.capabilities import AlternatingStep
from fastlatent.models.spectral import (
    ImageDecoder,
    SpectralBlock,
    check_image_shape,
    map_size,
    trunk,
)
from fastlatent.nn import at_least_float32
from fastlatent.noise import Noise, uncompiled

CHANNELS = 16  # of the outer feature map of encoder and discriminator
GENERATOR_CHANNELS = (16, 3)
CODE_FEATURES = (16, 32)  # of the discriminator's layers for latents
JOINT_FEATURES = 32  # of its layer for both


@dataclass(frozen=True)
class BiGANConfig:
    """What it takes to build the model."""

    OPTIONS: ClassVar = "model."

    family: Literal["bigan"] = "bigan"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of the images; both sides multiples of 4."""
    dim: int = 16
    """Number of latents."""
    discriminator_rate: float = 0.6
    """Learning rate of the discriminator, as a factor of --lr. Encoder and generator learn at --lr.
    """

    def __post_init__(self) -> None:
        check_image_shape(self)
        require(self.dim >= 1, self, "dim", "at least 1")
        require(0 < self.discriminator_rate < math.inf, self, "discriminator_rate", "positive")


class Encoder(nn.Module):
    """Images (n, c, h, w) in [-1, 1] to latents (n, d)."""

    def __init__(self, config: BiGANConfig):
        super().__init__()
        self.trunk = trunk(config.image_shape, CHANNELS)
        self.code = nn.Linear(map_size(config.image_shape), config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.trunk(x))


class Discriminator(nn.Module):
    """Images (n, c, h, w) in [-1, 1] with latents (n, d) to the logits (n,) of their being real."""

    def __init__(self, config: BiGANConfig):
        super().__init__()
        first, second = CODE_FEATURES
        self.trunk = trunk(config.image_shape, CHANNELS)
        self.code = nn.Sequential(
            SpectralBlock(nn.Linear(config.dim, first)), SpectralBlock(nn.Linear(first, second))
        )
        size = map_size(config.image_shape) + second
        self.joint = SpectralBlock(nn.Linear(size, JOINT_FEATURES))
        self.score = nn.Linear(JOINT_FEATURES, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        joint = self.joint(torch.cat([self.trunk(x), self.code(z)], 1))
        return at_least_float32(self.score(joint)[:, 0])


class BiGAN(LatentModel):
    """Adversarial networks with latents N(0, I); inside, images lie in [-1, 1].

    A training step has two alternating steps, each with a "loss" of its own, of binary
    cross-entropies in nats: the discriminator learns that (x, E(x)) is real and (G(z), z) is not,
    then encoder and generator learn the opposite, for other z. Neither says how good the model is.
    So the "loss" that `forward` measures, by which the best weights are chosen, is another: the
    mean squared error of the pixels of G(E(x)) in [-1, 1]. Nothing minimises it. "score_real" and
    "score_fake" are the probabilities of being real that the discriminator gives both pairs.
    """

    def __init__(self, config: BiGANConfig):
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.latent_dim = config.dim
        self.latent_kind = "real"
        self.loss_unit = "mean squared error"
        self.encoder = Encoder(config)
        self.decoder = ImageDecoder(config.image_shape, config.dim, GENERATOR_CHANNELS)
        self.discriminator = Discriminator(config)

    @property
    def alternating_steps(self) -> tuple[AlternatingStep, ...]:
        rate = self.config.discriminator_rate
        return (
            AlternatingStep("discriminator", (self.discriminator,), rate),
            AlternatingStep("generator", (self.encoder, self.decoder)),
        )

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """On CPUs these small convolutions take twice as long in channels_last."""
        return torch.contiguous_format if device.type == "cpu" else torch.channels_last

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        alternating_step: str | None = None,
        features: Sequence[Tensor] | None = None,  # where they are known
    ) -> dict[str, Tensor]:
        """Per-image values of an alternating step; without one the error of reconstructions.

        Raises ValueError without `noise`, as latents are always drawn.
        """
        self._check_images("x", x)
        target = 2 * self._checked_target(x, target) - 1
        if noise is None:
            raise ValueError("BiGAN: noise must be given, latents are drawn at random")
        x = 2 * x - 1
        z = self._normal(noise, alternating_step or "measured", x)
        fake = self.discriminator(self.decoder(z), z)
        encoded = self.encoder(x) if features is None else features[0]
        real = self.discriminator(x, encoded)
        if alternating_step is None:
            error = (at_least_float32(self.decoder(encoded)) - target).square().flatten(1).mean(1)
            return {"loss": error, "score_real": real.sigmoid(), "score_fake": fake.sigmoid()}
        # softplus(logit) is the binary cross-entropy with the label 0, softplus(-logit) with 1.
        sign = 1 if alternating_step == "discriminator" else -1
        values = {"loss": F.softplus(sign * fake) + F.softplus(-sign * real)}
        if alternating_step == "discriminator":
            values |= {"score_real": real.sigmoid(), "score_fake": fake.sigmoid()}
        return values

    @property
    def units(self) -> dict[str, str]:
        return {"loss": self.loss_unit, "score_real": "", "score_fake": ""}

    def encode(self, x: Tensor) -> Tensor:
        """Codes: (n, c, h, w) -> (n, d)."""
        return self.features(x)[0]

    def features(self, x: Tensor) -> tuple[Tensor]:
        """The latents alone: (n, c, h, w) -> (n, d)."""
        self._check_images("x", x)
        return (self.encoder(2 * x - 1),)

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        return features[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return (self.decoder(z) + 1) / 2

    def geometric_decoder(self) -> nn.Module:
        """Latents to images in [-1, 1], flattened."""
        return nn.Sequential(*self.decoder.folded(), nn.Flatten()).eval()

    @uncompiled
    def _normal(self, noise: Noise, name: str, x: Tensor) -> Tensor:
        return noise.normal(f"latent/{name}", (len(x), self.latent_dim), x.device, x.dtype)
