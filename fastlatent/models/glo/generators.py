"""The two networks that turn latents (n, d) into images (n, c, h, w) in [-1, 1]."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.models.glo.config import GLOConfig
from fastlatent.nn import at_least_float32, normal_convolutions_

PAPER_CHANNELS = 512  # of the first, 4x4 map; half as many of each next one
DCGAN_STD = 0.02  # of its convolutions' initial weights
SEED_CHANNELS = {1: (100, 50, 25, 6), 3: (384, 128, 64, 16)}  # by the channels of the images
SEED_SIDE = 32  # what five doublings make of one pixel


class PaperGenerator(nn.Sequential):
    """DCGAN's generator: transposed 4x4 convolutions without bias, batch norm, ReLU; tanh.

    A. Radford, L. Metz, S. Chintala, arXiv 1511.06434. For 64x64 images its maps have 512, 256, 128
    and 64 channels; each halving of the side leaves out the last of them.
    """

    def __init__(self, config: GLOConfig):
        doublings = int(math.log2(config.image_shape[1])) - 2
        inner = [max(1, round(config.width * PAPER_CHANNELS / 2**k)) for k in range(doublings)]
        layers: list[nn.Module] = [nn.Unflatten(1, (config.dim, 1, 1))]
        for k, (before, after) in enumerate(pairwise([config.dim, *inner])):
            stride, padding = (1, 0) if k == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        last = nn.ConvTranspose2d(inner[-1], config.image_shape[0], 4, 2, 1, bias=False)
        super().__init__(*layers, last, nn.Tanh())
        if config.initial_weights == "normal":
            normal_convolutions_(self, DCGAN_STD)

    def forward(self, z: Tensor) -> Tensor:
        *inner, tanh = self
        for layer in inner:
            z = layer(z)
        # In bf16 the slope of tanh is 0 from 3.5 on, where no gradient would come back from black.
        return tanh(at_least_float32(z))


class SeedGenerator(nn.Module):
    """Five stages of bilinear upsampling and a 4x4 convolution, ReLU, then batch norm; tanh.

    Settings of S.-H. Sun's program, Generative-Latent-Optimization-Tensorflow, 2017.
    """

    def __init__(self, config: GLOConfig):
        super().__init__()
        self.size = config.image_shape[1:]
        self.legacy = config.legacy_upsampling
        published = SEED_CHANNELS[config.image_shape[0]]
        inner = [max(1, round(config.width * channels)) for channels in published]
        channels = [config.dim, *inner, config.image_shape[0]]
        convolutions = [nn.Conv2d(a, b, 4) for a, b in pairwise(channels)]
        self.convolutions = nn.ModuleList(convolutions)
        # TensorFlow's eps; its decay of 0.9 is a momentum of 0.1 here.
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, eps=1e-3, momentum=0.1) for c in inner)
        for convolution in convolutions:
            nn.init.trunc_normal_(convolution.weight, 0, 0.02, -0.04, 0.04)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def forward(self, z: Tensor) -> Tensor:
        x = z[:, :, None, None]
        for k, convolution in enumerate(self.convolutions):
            x = self._resize(x, (2 * x.shape[2], 2 * x.shape[3]))
            # An even kernel has no middle: the published padding is 1 before and 2 after.
            x = convolution(F.pad(x, (1, 2, 1, 2)))
            if k < len(self.norms):
                x = self.norms[k](F.relu(x))
        x = torch.tanh(at_least_float32(x))
        return x if x.shape[2:] == self.size else self._resize(x, self.size)

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.legacy:
            return legacy_bilinear(legacy_bilinear(x, size[0], 2), size[1], 3)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def legacy_bilinear(x: Tensor, length: int, axis: int) -> Tensor:
    """Linear interpolation along an axis by TensorFlow 1's rule.

    Output o reads place o * n / length of the n inputs, and the last one beyond it.
    """
    n = x.shape[axis]
    place = torch.arange(length, device=x.device, dtype=torch.float64) * n / length
    low = place.long().clamp(max=n - 1)
    shape = [length if k == axis else 1 for k in range(x.dim())]
    weight = (place - low).to(x.dtype).reshape(shape)
    above = x.index_select(axis, (low + 1).clamp(max=n - 1))
    return torch.lerp(x.index_select(axis, low), above, weight)


def build_generator(config: GLOConfig) -> nn.Module:
    """The network of the configuration."""
    return PaperGenerator(config) if config.architecture == "paper" else SeedGenerator(config)
