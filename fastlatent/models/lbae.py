"""Latent Bernoulli Autoencoder: the latent is d bits, trained straight through the sign.

J. Fajtl, V. Argyriou, D. Monekosso, P. Remagnino, "Latent Bernoulli Autoencoder", ICML 2020,
PMLR 119:2964-2974; layers and settings as in the authors' program (github.com/ok1zjf/LBAE, MIT).
There is no latent loss: the distribution of the codes is fitted after training, see
fastlatent.priors.BernoulliCopula. The paper's baseline, a Gaussian VAE on the same trunk, is
`latent="gaussian"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.jobs.naming import require, require_word
from fastlatent.models.base import NATS, LatentModel
from fastlatent.nn import (
    at_least_float32,
    bernoulli_nll,
    convolution,
    gaussian_kl,
    normal_convolutions_,
    resample_stages,
    squared_error,
)
from fastlatent.noise import Noise, uncompiled
from fastlatent.ops import binarize

SLOPE = 0.02  # of every leaky ReLU
CONVOLUTION_STD = 0.02  # initial standard deviation of every convolution weight
INNER_SIZE = 4  # side of the innermost feature map
KL_CLAMP = 10.0  # bound on mean and log variance inside the training KL

Corruption = Literal["none", "noise", "blank"]


@dataclass(frozen=True)
class Architecture:
    """Layer widths for one kind of image; channel numbers are multiplied by the model's width."""

    image_shape: tuple[int, int, int]  # (c, h, w)
    encoder: tuple[int, ...]  # output channels of the halving stages
    decoder: tuple[int, ...]  # output channels of the doubling stages
    decoder_input: int  # channels of the innermost feature map of the decoder
    reconstruction: Literal["cross_entropy", "squared_error"]
    kl_weight: float  # of the published VAE baseline


ARCHITECTURES = {
    # The published decoder passes 200 bits through 16 numbers, one 4x4 map.
    "mnist": Architecture((1, 32, 32), (64, 128), (128, 64), 1, "cross_entropy", 10.0),
    "cifar10": Architecture((3, 32, 32), (64, 128), (128, 64), 128, "squared_error", 128.0),
    "celeba": Architecture((3, 64, 64), (64, 128, 256), (256, 128, 64), 256, "squared_error", 64.0),
}


@dataclass(frozen=True)
class LBAEConfig:
    """What it takes to build the model."""

    OPTIONS: ClassVar = "model."

    family: Literal["lbae"] = "lbae"
    """Kind of model; the preset has chosen it."""
    architecture: Literal["mnist", "cifar10", "celeba"] = "mnist"
    """Layers for 32x32 grey, 32x32 colour or 64x64 colour images."""
    latent: Literal["bits", "gaussian"] = "bits"
    """Kind of latents: bits, or gaussian for the VAE baseline."""
    dim: int = 200
    """Number of bits, or of Gaussian latents."""
    surrogate: Literal["tanh", "clip", "identity"] = "tanh"
    """Gradient of the sign function in training."""
    width: float = 1.0
    """Factor of the channel numbers 64, 128 and 256."""
    kl_weight: float = 0.0
    """Gaussian latents: the KL enters the loss with the weight kl_weight / dim."""
    evaluate_with: Literal["mean", "sample"] = "mean"
    """Gaussian latents: the test loss decodes the posterior mean, or a sample."""
    corruption: Corruption = "none"
    """What training does to its input: noise adds Gaussian noise and clips to [0, 1]; blank sets a
    rectangle to 0."""
    corruption_strength: float = 0.0
    """Standard deviation of the noise, or blanked fraction of the image."""
    test_corruption: Corruption = "none"
    """What the test loss does to its input, as --model.corruption."""
    test_corruption_strength: float = 0.0
    """Strength of that, as --model.corruption-strength."""

    @property
    def image_shape(self) -> tuple[int, int, int]:  # (c, h, w)
        return ARCHITECTURES[self.architecture].image_shape

    def __post_init__(self) -> None:
        require_word(self, "architecture", tuple(ARCHITECTURES))
        require_word(self, "latent", ("bits", "gaussian"))
        require_word(self, "surrogate", ("tanh", "clip", "identity"))
        require_word(self, "evaluate_with", ("mean", "sample"))
        require(self.dim >= 1, self, "dim", "at least 1")
        require(0 < self.width < float("inf"), self, "width", "positive")
        require(self.kl_weight >= 0, self, "kl_weight", "at least 0")
        for name in ("corruption", "test_corruption"):
            require_word(self, name, ("none", "noise", "blank"))
            strength = getattr(self, f"{name}_strength")
            require(strength >= 0, self, f"{name}_strength", "at least 0")
            if getattr(self, name) == "blank":
                require(strength <= 1, self, f"{name}_strength", "a fraction, at most 1")

    def channels(self, count: int) -> int:
        """`count` channels of the published model at this width."""
        return max(1, round(count * self.width))


class Encoder(nn.Module):
    """Images (n, c, h, w) to the logits of the bits, or to mean and log variance: each (n, d)."""

    def __init__(self, config: LBAEConfig):
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        stem = config.channels(64)
        widths = [stem, *map(config.channels, architecture.encoder)]
        inner = config.channels(256)
        features = inner * INNER_SIZE**2

        self.stem = convolution(architecture.image_shape[0], stem, 3)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.stages = resample_stages(widths, SLOPE)
        self.inner = convolution(widths[-1], inner, 4, 2)
        heads = ("logits",) if config.latent == "bits" else ("mean", "log_variance")
        self.heads = nn.ModuleDict({name: nn.Linear(features, config.dim) for name in heads})
        normal_convolutions_(self, CONVOLUTION_STD)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.leaky_relu(self.stem_norm(self.stem(x)), SLOPE)
        x = self.inner(self.stages(x)).flatten(1)
        return tuple(head(x) for head in self.heads.values())


class Decoder(nn.Module):
    """Latents (n, d) to image logits (n, c, h, w); the image is their sigmoid."""

    def __init__(self, config: LBAEConfig):
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        inner = config.channels(architecture.decoder_input)
        widths = [inner, *map(config.channels, architecture.decoder)]
        last = config.channels(64)

        self.inner_shape = (inner, INNER_SIZE, INNER_SIZE)
        self.project = nn.Linear(config.dim, inner * INNER_SIZE**2)
        self.stages = resample_stages(widths, SLOPE, transposed=True)
        self.expand = convolution(widths[-1], last, 4, 2, transposed=True)
        self.expand_norm = nn.BatchNorm2d(last)
        self.image = convolution(last, architecture.image_shape[0], 3, transposed=True)
        normal_convolutions_(self, CONVOLUTION_STD)

    def forward(self, z: Tensor) -> Tensor:
        x = self.stages(self.project(z).unflatten(1, self.inner_shape))
        return self.image(F.leaky_relu(self.expand_norm(self.expand(x)), SLOPE))


class LBAE(LatentModel):
    """The autoencoder, over bits or (the paper's baseline) over Gaussian latents.

    `forward` returns "loss" and, over bits, "quantization_error"; over Gaussian latents its parts
    "reconstruction" and "kl".
    """

    def __init__(self, config: LBAEConfig):
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        self.config = config
        self.image_shape = config.image_shape
        self.latent_dim = config.dim
        self.latent_kind = "bits" if config.latent == "bits" else "real"
        self.loss_unit = {
            "cross_entropy": NATS,
            "squared_error": "squared error per image",
        }[architecture.reconstruction]
        # In this order: the published program draws the decoder's weights first.
        self.decoder = Decoder(config)
        self.encoder = Encoder(config)

    def forward(
        self,
        x: Tensor,
        target: Tensor | None = None,
        noise: Noise | None = None,
        features: Sequence[Tensor] | None = None,  # of the corrupted images, where they are known
    ) -> dict[str, Tensor]:
        """Per-image losses; the input is corrupted as configured, the target is the clean image.

        Raises ValueError where the configuration draws random numbers and `noise` is None.
        """
        self._check_images("x", x)
        target = self._checked_target(x, target)
        if features is None:
            features = self.encoder(self.corrupt(x, noise))

        if self.latent_kind == "bits":
            (logits,) = features
            codes, error = binarize(logits, self.config.surrogate)
            reconstruction = self._reconstruction_loss(self.decoder(codes), target)
            return {"loss": reconstruction, "quantization_error": error}

        mean, log_variance = map(at_least_float32, features)
        z = mean
        if self.training or self.config.evaluate_with == "sample":
            z = mean + (log_variance / 2).exp() * _normal("latent", mean, noise)
        reconstruction = self._reconstruction_loss(self.decoder(z), target)
        kl = gaussian_kl(mean, log_variance, clamp=KL_CLAMP if self.training else None)
        loss = reconstruction + self.config.kl_weight / self.latent_dim * kl
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}

    @property
    def units(self) -> dict[str, str]:
        unit = self.loss_unit
        return {"loss": unit, "reconstruction": unit, "kl": NATS, "quantization_error": ""}

    def encode(self, x: Tensor) -> Tensor:
        """Codes +/-1, or posterior means: (n, c, h, w) -> (n, d). Never corrupts its input."""
        return self.latents_from(self.features(x))

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """Logits of the bits, or mean and log variance: (n, c, h, w) -> (n, d) each."""
        self._check_images("x", x)
        return self.encoder(x)

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, d)."""
        bits = self.latent_kind == "bits"
        return binarize(features[0], self.config.surrogate)[0] if bits else features[0]

    def gaussian_posterior(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of q(z | x), each (n, d); None of bits."""
        self._check_images("x", x)
        if self.latent_kind == "bits":
            return None
        mean, log_variance = map(at_least_float32, self.encoder(x))
        return mean, (log_variance / 2).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1]: (n, d) -> (n, c, h, w)."""
        self._check_latents("z", z)
        return self.decoder(z).sigmoid()

    def corrupt(self, x: Tensor, noise: Noise | None) -> Tensor:
        """What the encoder is shown in `forward`: (n, c, h, w) -> (n, c, h, w)."""
        config = self.config
        kind, strength = (
            (config.corruption, config.corruption_strength)
            if self.training
            else (config.test_corruption, config.test_corruption_strength)
        )
        if kind == "noise":
            return (x + strength * _normal("corruption", x, noise)).clamp(0, 1)
        if kind == "blank":
            return x * ~_rectangles(x, strength, noise)
        return x

    def _reconstruction_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if ARCHITECTURES[self.config.architecture].reconstruction == "cross_entropy":
            return bernoulli_nll(logits, target)
        return squared_error(at_least_float32(logits).sigmoid(), target)


@uncompiled
def _normal(name: str, like: Tensor, noise: Noise | None) -> Tensor:
    return _required(name, noise).normal(name, like.shape, like.device, like.dtype)


@uncompiled
def _rectangles(x: Tensor, fraction: float, noise: Noise | None) -> Tensor:
    """Masks (n, 1, h, w): one uniformly placed rectangle per image, of the image's proportions."""
    n, _, h, w = x.shape
    side = fraction**0.5
    position = _required("corruption", noise).uniform("corruption", (n, 2), x.device)

    def inside(size: int, u: Tensor) -> Tensor:  # (n,) -> (n, size)
        extent = round(side * size)
        start = (u * (size - extent + 1)).floor()[:, None]
        index = torch.arange(size, device=x.device)
        return (index >= start) & (index < start + extent)

    rows, columns = inside(h, position[:, 0]), inside(w, position[:, 1])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _required(name: str, noise: Noise | None) -> Noise:
    if noise is None:
        raise ValueError(f"LBAE: noise must be given, the configuration draws random {name} noise")
    return noise
