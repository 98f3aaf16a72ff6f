"""Spectrally normalised layers and the small convolutional networks that VAE and BiGAN share.

Layers as those of M. Y. Michelis and Q. Becker, "On Linear Interpolation in the Latent Space of
Deep Generative Models", ICLR 2021 workshop GTRL, arXiv 2105.03663. Images here lie in [-1, 1].
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.jobs.naming import require

MAP_CHANNELS = 32  # of the innermost feature map
EPSILON = 1e-12  # least length that a vector is divided by


class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value, estimated as u^T W v.

    W is the weight as a matrix (outputs, rest). In training each use of the weight takes a step
    of the power iteration for u and v (T. Miyato et al., "Spectral Normalization for Generative
    Adversarial Networks", ICLR 2018, algorithm 1), in full precision under autocast too; in
    evaluation they stay.
    """

    u: Tensor  # (outputs,)
    v: Tensor  # (rest,)

    def __init__(self, weight: Tensor, out_dim: int):
        super().__init__()
        self.out_dim = out_dim
        rows = weight.shape[out_dim]
        for name, size in (("u", rows), ("v", weight.numel() // rows)):
            self.register_buffer(name, F.normalize(torch.randn(size), dim=0, eps=EPSILON))
        self._iterate(self.matrix(weight), 15)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if self.training:
                self._iterate(self.matrix(weight), 1)
            return self.divide(weight)

    def divide(self, weight: Tensor) -> Tensor:
        """The weight divided by the estimate as it is."""
        # Copies, as a second use of the weight may come before the backward pass of the first.
        return weight / torch.dot(self.u.clone(), self.matrix(weight) @ self.v.clone())

    def matrix(self, weight: Tensor) -> Tensor:
        """W: (outputs, rest)."""
        return weight.movedim(self.out_dim, 0).flatten(1)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, times: int) -> None:
        for _ in range(times):
            self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=EPSILON))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=EPSILON))


class SpectralBlock(nn.Module):
    """ELU(BN(layer(x))) with the layer's weight spectrally normalised; the layer has a bias."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        super().__init__()
        self.out_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        outputs = layer.weight.shape[self.out_dim]
        self.layer = layer
        self.spectral = SpectralNorm(layer.weight.detach(), self.out_dim)
        self.norm = (nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d)(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.norm(self.linear(x)))

    def linear(self, x: Tensor) -> Tensor:
        """The layer, its weight normalised."""
        weight, bias = self.spectral(self.layer.weight), self.layer.bias
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        transposed = isinstance(self.layer, nn.ConvTranspose2d)
        convolve = F.conv_transpose2d if transposed else F.conv2d
        return convolve(x, weight, bias, self.layer.stride)

    @torch.no_grad()
    def folded(self) -> tuple[nn.Module, nn.Module]:
        """Plain layers that compute what this one does in evaluation: the layer and its ELU."""
        layer, norm = copy.deepcopy(self.layer), self.norm
        mean, variance = norm.running_mean, norm.running_var
        assert layer.bias is not None and mean is not None and variance is not None
        gain = norm.weight / (variance + norm.eps).sqrt()
        shape = [1] * layer.weight.dim()
        shape[self.out_dim] = -1
        layer.weight.copy_(self.spectral.divide(layer.weight) * gain.view(shape))
        layer.bias.sub_(mean).mul_(gain).add_(norm.bias)
        return layer, nn.ELU()


def check_image_shape(config: Any) -> None:
    """ValueError where its images are of a size that the networks here do not give back."""
    shape = config.image_shape
    good = len(shape) == 3 and shape[0] >= 1
    good = good and not any(size < 8 or size % 4 for size in shape[1:])
    sides = "channels, height and width, both of them multiples of 4 from 8 up"
    require(good, config, "image_shape", sides)


def map_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The innermost feature map: 32x6x6 for images of 28x28 pixels."""
    _, height, width = image_shape
    return MAP_CHANNELS, height // 4 - 1, width // 4 - 1


def map_size(image_shape: tuple[int, int, int]) -> int:
    """How many numbers the innermost feature map holds."""
    channels, height, width = map_shape(image_shape)
    return channels * height * width


def trunk(image_shape: tuple[int, int, int], channels: int) -> nn.Sequential:
    """Images (n, c, h, w) to the innermost feature map, flattened."""
    return nn.Sequential(
        SpectralBlock(nn.Conv2d(image_shape[0], channels, 4, 2)),
        SpectralBlock(nn.Conv2d(channels, MAP_CHANNELS, 3, 2)),
        nn.Flatten(),
    )


class ImageDecoder(nn.Module):
    """Latents (n, d) to images (n, c, h, w) in [-1, 1]."""

    def __init__(self, image_shape: tuple[int, int, int], dim: int, channels: tuple[int, int]):
        super().__init__()
        first, second = channels
        self.project = nn.Linear(dim, map_size(image_shape))
        self.unflatten = nn.Unflatten(1, map_shape(image_shape))
        self.stages = nn.Sequential(
            SpectralBlock(nn.ConvTranspose2d(MAP_CHANNELS, first, 3, 2)),
            SpectralBlock(nn.ConvTranspose2d(first, second, 4, 2)),
        )
        self.image = nn.Conv2d(second, image_shape[0], 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.image(self.stages(self.unflatten(self.project(z)))).tanh()

    def folded(self) -> nn.Sequential:
        """A frozen copy of plain layers, with normalisations as in evaluation folded into them."""
        blocks: list[nn.Module] = []
        for stage in self.stages:
            assert isinstance(stage, SpectralBlock)
            blocks += stage.folded()
        project, image = copy.deepcopy(self.project), copy.deepcopy(self.image)
        layers = (project, copy.deepcopy(self.unflatten), *blocks, image, nn.Tanh())
        return nn.Sequential(*layers).eval().requires_grad_(False)
