"""Blocks, initialisation and reconstruction losses that the models share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, transposed: bool = False
) -> nn.Conv2d | nn.ConvTranspose2d:
    """A bias-free convolution with padding 1: 3/1 keeps the size, 4/2 halves (or doubles) it."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, padding=1, bias=False)


class ResidualUnit(nn.Module):
    """act(BN(conv(act(BN(conv(act(y)))))) + y) for a normalised, not yet activated y (n, c, h, w).

    The skip is taken before the activation. `transposed` uses transposed 3x3 convolutions.
    """

    def __init__(self, channels: int, slope: float, transposed: bool = False):
        super().__init__()
        self.slope = slope
        self.conv1 = convolution(channels, channels, 3, transposed=transposed)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, transposed=transposed)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, y: Tensor) -> Tensor:
        inner = self.norm1(self.conv1(F.leaky_relu(y, self.slope)))
        inner = self.norm2(self.conv2(F.leaky_relu(inner, self.slope)))
        return F.leaky_relu(inner + y, self.slope)


class ResampleStage(nn.Module):
    """4x4 convolution of stride 2, batch norm, residual unit: (n, c, h, w) -> (n, c', h/2, w/2).

    `transposed` doubles the size instead.
    """

    def __init__(self, in_channels: int, out_channels: int, slope: float, transposed: bool = False):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, 4, 2, transposed=transposed)
        self.norm = nn.BatchNorm2d(out_channels)
        self.residual = ResidualUnit(out_channels, slope, transposed)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.norm(self.conv(x)))


def resample_stages(
    channels: Sequence[int], slope: float, transposed: bool = False
) -> nn.Sequential:
    """One ResampleStage between each number of channels and the next."""
    return nn.Sequential(*(ResampleStage(a, b, slope, transposed) for a, b in pairwise(channels)))


@torch.no_grad()
def normal_convolutions_(module: nn.Module, std: float) -> None:
    """Draw the weights of every (transposed) convolution in `module` from N(0, std^2)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.weight.normal_(0.0, std)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Modules built inside get the weights of `seed`, on the CPU; global state is restored."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bernoulli_nll(
    logits: Tensor,  # (n, ...)
    target: Tensor,  # (n, ...) in [0, 1]; grey values are taken as probabilities
) -> Tensor:  # (n,) nats per image
    """Binary cross-entropy of sigmoid(logits), summed over each image."""
    logits, target = at_least_float32(logits), at_least_float32(target)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def squared_error(
    image: Tensor,  # (n, ...)
    target: Tensor,  # (n, ...)
) -> Tensor:  # (n,)
    """Squared error summed over each image."""
    difference = at_least_float32(image) - at_least_float32(target)
    return difference.square().flatten(1).sum(1)
