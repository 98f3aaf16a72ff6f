"""Variational autoencoder with convolutional networks and, after training, a variance of its own.

Its latent geometry is what M. Y. Michelis and Q. Becker study in "On Linear Interpolation in the
Latent Space of Deep Generative Models", ICLR 2021 workshop GTRL, arXiv 2105.03663. While it trains,
all pixels have one fixed variance; then fastlatent.models.precision is fitted to what is left.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fastlatent.jobs.naming import require
from fastlatent.models.base import NATS, LatentModel
from fastlatent.models.precision import PrecisionNet, gaussian_nll
from fastlatent.models.spectral import (
    MAP_CHANNELS,
    ImageDecoder,
    check_image_shape,
    map_size,
    trunk,
)
from fastlatent.nn import at_least_float32, gaussian_kl
from fastlatent.noise import Noise, uncompiled


@dataclass(frozen=True)
class VAEConfig:
    """What it takes to build the model."""

    OPTIONS: ClassVar = "model."

    family: Literal["vae"] = "vae"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of the images; both sides multiples of 4."""
    dim: int = 16
    """Number of latents."""
    samples: int = 4
    """Draws of the latents for each image in the loss."""
    fixed_variance: float = 1.6487
    """Variance of every pixel in the loss, for images in [-1, 1]. The published program has e^0.5,
    as it takes its 0.5 for a log-variance."""
    centers_per_latent: int = 4
    """Radial basis functions for each latent, in the variance that is fitted after training."""
    variance_floor: float = 1e-4
    """Least squared error in that fit, for images in [-1, 1]."""
    variance_steps: int = 50
    """Optimizer steps of that fit."""
    variance_images: int = 60_000
    """Training images for that fit, at most."""

    def __post_init__(self) -> None:
        check_image_shape(self)
        counts = ("dim", "samples", "centers_per_latent", "variance_steps", "variance_images")
        for name in counts:
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("fixed_variance", "variance_floor"):
            require(0 < getattr(self, name) < math.inf, self, name, "positive")


class Encoder(nn.Module):
    """Images (n, c, h, w) in [-1, 1] to mean and log variance, each (n, d)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.trunk = trunk(config.image_shape, MAP_CHANNELS)
        self.mean = nn.Linear(map_size(config.image_shape), config.dim)
        self.log_variance = nn.Linear(map_size(config.image_shape), config.dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.mean(features), self.log_variance(features)


class VAE(LatentModel):
    """Gaussian latents, Gaussian pixels; inside, images lie in [-1, 1].

    `forward` returns "loss" (negative ELBO under the fixed variance), "reconstruction" and "kl"; in
    evaluation also "fitted_reconstruction", at the posterior mean under the fitted variance, once
    there is one.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.latent_dim = config.dim
        self.latent_kind = "real"
        self.loss_unit = NATS
        self.encoder = Encoder(config)
        self.decoder = ImageDecoder(config.image_shape, config.dim, (MAP_CHANNELS, MAP_CHANNELS))
        self.precision = PrecisionNet(
            config.dim, config.centers_per_latent * config.dim, math.prod(config.image_shape)
        )

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """On CPUs these small convolutions take twice as long in channels_last."""
        return torch.contiguous_format if device.type == "cpu" else torch.channels_last

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        features: Sequence[Tensor] | None = None,  # where they are known
    ) -> dict[str, Tensor]:
        """Per-image values; raises ValueError without `noise`, as latents are always drawn."""
        self._check_images("x", x)
        target = 2 * self._checked_target(x, target) - 1
        if noise is None:
            raise ValueError("VAE: noise must be given, the latents are drawn at random")
        mean, log_variance = self.features(x) if features is None else features
        draws = self._normal(noise, mean.expand(self.config.samples, *mean.shape))
        z = (mean + (log_variance / 2).exp() * draws).flatten(0, 1)
        errors = self._errors(z, target.expand(self.config.samples, *target.shape).flatten(0, 1))
        # All draws pass through the decoder as one batch, which also normalises them together.
        squares = errors.sum(1).unflatten(0, (self.config.samples, -1)).mean(0)
        reconstruction = self._gaussian_nll(squares)
        kl = gaussian_kl(mean, log_variance)
        values = {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        if not self.training and self.precision.fitted:
            fitted = gaussian_nll(self._errors(mean, target), self.precision(mean))
            values["fitted_reconstruction"] = fitted
        return values

    @property
    def units(self) -> dict[str, str]:
        return dict.fromkeys(("loss", "reconstruction", "kl", "fitted_reconstruction"), NATS)

    def encode(self, x: Tensor) -> Tensor:
        """Posterior means: (n, c, h, w) -> (n, d)."""
        return self.features(x)[0]

    def gaussian_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each (n, d)."""
        mean, log_variance = self.features(x)
        return mean, (log_variance / 2).exp()

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior: (n, c, h, w) -> (n, d) each."""
        self._check_images("x", x)
        mean, log_variance = map(at_least_float32, self.encoder(2 * x - 1))
        return mean, log_variance

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        return features[0]

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) of one draw of z for each image: (n,) nats.

        The variance of the pixels is the fixed one of the loss.
        """
        mean, log_variance = features
        std = (log_variance / 2).exp()
        drawn = self._normal(noise, mean)
        z = mean + std * drawn
        squares = self._errors(z, 2 * x - 1).sum(1)
        log_ratio = (0.5 * (drawn.square() - z.square()) + std.log()).sum(1)  # log p(z) / q(z|x)
        return log_ratio - self._gaussian_nll(squares)

    def decode(self, z: Tensor) -> Tensor:
        """Mean images, in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return (self.decoder(z) + 1) / 2

    @property
    def finalising_images(self) -> int:
        return self.config.variance_images

    def finalise(self, batches: Iterable[Tensor], noise: Noise) -> None:
        """Fit the variance to the decoder's error for each image at its own latents."""
        if iter(batches) is batches:
            batches = [*batches]  # they are read twice
        latents = [self.encode(x) for x in batches]
        errors = (self._errors(z, 2 * x - 1) for z, x in zip(latents, batches, strict=True))
        floor, steps = self.config.variance_floor, self.config.variance_steps
        self.precision.fit(torch.cat(latents), errors, noise, floor, steps)

    def geometric_decoder(self) -> nn.Module:
        """Latents to mean images in [-1, 1], flattened; once they are fitted, also variances."""
        mean = nn.Sequential(*self.decoder.folded(), nn.Flatten()).eval()
        if not self.precision.fitted:
            return mean
        return MeanVariance(mean, self.precision.variance()).eval()

    def _errors(self, z: Tensor, target: Tensor) -> Tensor:
        """Squared residuals of decoded latents: (n, d), (n, c, h, w) -> (n, D)."""
        return (at_least_float32(self.decoder(z)) - target).square().flatten(1)

    def _gaussian_nll(self, squares: Tensor) -> Tensor:
        """-log p(x|z) under the fixed variance, of squared residuals summed over the pixels."""
        variance = self.config.fixed_variance
        constant = math.prod(self.image_shape) * math.log(2 * math.pi * variance)
        return 0.5 * (squares / variance + constant)

    @uncompiled
    def _normal(self, noise: Noise, mean: Tensor) -> Tensor:
        """Standard normal numbers, as many as there are means (..., n, d)."""
        return noise.normal("latent", mean.shape, mean.device, mean.dtype, axis=-2)


class MeanVariance(nn.Module):
    """Latents (n, d) to means and variances of the pixels, each (n, D)."""

    def __init__(self, mean: nn.Module, variance: nn.Module):
        super().__init__()
        self.mean = mean
        self.variance = variance

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(z), self.variance(z)
