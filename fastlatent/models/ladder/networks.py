"""The published convolutional networks: images to posteriors of their latents, and back.

Convolutions of stride 2 pad one row at the bottom and one column at the right, as TensorFlow does.
Weights start Glorot-uniform, biases at zero.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.models.ladder.config import LaDDerConfig, Output
from fastlatent.nn import at_least_float32, glorot_, upsample_twice

SLOPE = 0.2  # of the leaky ReLU
LEAST_STD = 1e-3  # of every posterior
BATCH_NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}
STYLE_LAYERS = 8  # dense layers between the first features and the style vector


class GaussianHead(nn.Module):
    """Features (n, f) to mean and standard deviation of the latents, (n, d) each."""

    def __init__(self, features: int, dim: int, positive: Literal["softplus", "relu"]):
        super().__init__()
        self.mean = nn.Linear(features, dim)
        self.std = nn.Linear(features, dim)
        self.positive = F.softplus if positive == "softplus" else F.relu

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        raw = at_least_float32(self.std(features))
        return at_least_float32(self.mean(features)), self.positive(raw) + LEAST_STD


class SymmetricPad(nn.Module):
    """Images mirrored about their edges, the edge pixels among them: (n, c, h, w) -> 2k larger."""

    def __init__(self, margin: int):
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            size = x.shape[dim]
            before = x.narrow(dim, 0, self.margin).flip(dim)
            after = x.narrow(dim, size - self.margin, self.margin).flip(dim)
            x = torch.cat([before, x, after], dim)
        return x


class Encoder(nn.Module):
    """Images (n, c, h, w) in [0, 1] to mean and standard deviation, (n, d) each."""

    def __init__(self, config: LaDDerConfig):
        super().__init__()
        trunk, features = ENCODERS[config.architecture](config.image_shape[0], config.width)
        self.trunk = trunk
        self.head = GaussianHead(features, config.dim, config.posterior_std)
        glorot_(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.trunk(x))


class Decoder(nn.Module):
    """Latents (n, d) to images (n, c, h, w); only a sigmoid keeps those in [0, 1]."""

    def __init__(self, config: LaDDerConfig):
        super().__init__()
        channels = config.image_shape[0]
        self.layers = DECODERS[config.architecture](config.dim, channels, config.width)
        self.output = OUTPUTS[config.output]
        glorot_(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.output(at_least_float32(self.layers(z)))


def digit_encoder(channels: int, width: int) -> tuple[nn.Module, int]:
    """28x28 images to width / 4 features."""
    sizes = (channels, width // 16, width // 4, width)
    dense = nn.Linear(16 * width, width // 4)
    halvings = [halving(*pair) for pair in pairwise(sizes)]
    return nn.Sequential(SymmetricPad(2), *halvings, nn.Flatten(), dense, activation()), width // 4


def digit_decoder(dim: int, channels: int, width: int) -> nn.Module:
    """To 28x28 images."""
    return nn.Sequential(
        nn.Linear(dim, 16 * width),
        activation(),
        nn.Unflatten(1, (16 * width, 1, 1)),
        nn.PixelShuffle(4),
        *shuffled(width, width),
        *shuffled(width // 4, width // 4),
        *shuffled(width // 16, width // 16),
        nn.Conv2d(width // 64, channels, 5),
    )


def fashion_encoder(channels: int, width: int) -> tuple[nn.Module, int]:
    """28x28 images to `width` features."""
    sizes = (channels, width // 4, width // 4, width // 2)
    halvings = [halving(*pair) for pair in pairwise(sizes)]
    last = nn.Sequential(nn.Conv2d(width // 2, width // 2, 3), activation())
    dense = nn.Linear(2 * width, width)
    return nn.Sequential(SymmetricPad(2), *halvings, last, nn.Flatten(), dense, activation()), width


def fashion_decoder(dim: int, channels: int, width: int) -> nn.Module:
    """To 28x28 images."""
    return nn.Sequential(
        nn.Linear(dim, width),
        activation(),
        nn.Unflatten(1, (width, 1, 1)),
        nn.PixelShuffle(2),
        *shuffled(width // 4, width, kernel=1),
        *shuffled(width // 4, width),
        *shuffled(width // 4, width),
        *shuffled(width // 4, width),
        nn.Conv2d(width // 4, channels, 5),
    )


def celeba_encoder(channels: int, width: int) -> tuple[nn.Module, int]:
    """128x128 images to 4 width features."""
    sizes = (channels, width // 4, width // 4, width // 2, width // 2, width)
    halvings = [halving(a, b, nn.BatchNorm2d(b, **BATCH_NORM)) for a, b in pairwise(sizes)]
    norm = nn.BatchNorm2d(width, **BATCH_NORM)
    last = nn.Sequential(nn.Conv2d(width, width, 3), norm, activation())
    return nn.Sequential(*halvings, last, nn.Flatten()), 4 * width


class StyledDecoder(nn.Module):
    """Latents (n, d) to 128x128 images, by styles that scale and shift normalised feature maps.

    A smaller relative of T. Karras, S. Laine, T. Aila, "A Style-Based Generator Architecture for
    Generative Adversarial Networks", CVPR 2019. Maps grow by bilinear interpolation between pixel
    centres; the published program interpolates from the corner.
    """

    def __init__(self, dim: int, channels: int, width: int):
        super().__init__()
        half, quarter = width // 2, width // 4
        self.first = nn.Sequential(nn.Linear(dim, width), activation())
        layers = ((nn.Linear(width, width), activation()) for _ in range(STYLE_LAYERS))
        self.style = nn.Sequential(*(part for layer in layers for part in layer))
        self.start = nn.Conv2d(width, width, 1)
        sizes = (width, width, width, half, quarter)
        self.styled = nn.ModuleList(Styled(a, b, width) for a, b in pairwise(sizes))
        self.plain = nn.ModuleList(same(size, size) for size in (width, half, quarter))
        self.image = nn.Conv2d(quarter, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        first = self.first(z)
        style = self.style(first)
        y = upsample_twice(self.start(first[:, :, None, None]))
        y = self.styled[0](y, style)
        y = upsample_twice(self.styled[1](y, style))  # to 8x8 by two doublings
        for plain, styled in zip(self.plain, self.styled[2:], strict=False):
            y = styled(upsample_twice(plain(upsample_twice(y))), style)
        return self.image(self.plain[-1](upsample_twice(y)))


class Styled(nn.Module):
    """3x3 convolution, instance norm, scale and shift by a style, activation, to (n, b, h, w)."""

    def __init__(self, a: int, b: int, style: int):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, padding=1)
        self.style = nn.Linear(style, 2 * b)

    def forward(self, y: Tensor, style: Tensor) -> Tensor:
        y = self.conv(y)
        variance, mean = torch.var_mean(y, (2, 3), correction=0, keepdim=True)
        scale, shift = self.style(style)[:, :, None, None].chunk(2, 1)
        y = (y - mean) * (variance + 1e-6).rsqrt() * (1 + scale) + shift
        return F.leaky_relu(y, SLOPE)


def activation() -> nn.Module:
    return nn.LeakyReLU(SLOPE)


def halving(a: int, b: int, norm: nn.Module | None = None) -> nn.Sequential:
    """3x3 convolution of stride 2 and activation: (n, a, h, w) -> (n, b, h/2, w/2)."""
    layers = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(a, b, 3, stride=2)]
    return nn.Sequential(*layers, *([] if norm is None else [norm]), activation())


def same(a: int, b: int, kernel: int = 3) -> nn.Sequential:
    """Convolution and activation at the same size: (n, a, h, w) -> (n, b, h, w)."""
    return nn.Sequential(nn.Conv2d(a, b, kernel, padding=kernel // 2), activation())


def shuffled(a: int, b: int, kernel: int = 3) -> tuple[nn.Module, nn.Module]:
    """`same`, then every four channels into a square: (n, a, h, w) -> (n, b/4, 2h, 2w)."""
    return same(a, b, kernel), nn.PixelShuffle(2)


ENCODERS = {"digit": digit_encoder, "fashion": fashion_encoder, "celeba": celeba_encoder}
DECODERS = {"digit": digit_decoder, "fashion": fashion_decoder, "celeba": StyledDecoder}
OUTPUTS: dict[Output, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "linear": nn.Identity(),
    "sigmoid": torch.sigmoid,
}
