"""Blocks, initialisation and reconstruction losses that the models share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent import ops

ResidualLayout = Literal["cabdcabd", "bacdbac", "bacdbacd"]
Nonlinearity = Literal["relu", "leakyrelu", "elu", "selu"]


def elu(x: Tensor, inplace: bool = False) -> Tensor:
    """ELU of x; on a GPU PyTorch's own, which torch.compile fuses with what is around it."""
    return ops.elu(x) if x.device.type == "cpu" else F.elu(x, inplace=inplace)


ACTIVATIONS: dict[Nonlinearity, Callable[..., Tensor]] = {  # (x, inplace=False)
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,  # slope 0.01
    "elu": elu,
    "selu": F.selu,
}


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


@dataclass(frozen=True)
class BlockStyle:
    """What all residual blocks of a network have in common."""

    channels: int
    layout: ResidualLayout  # b: batch norm, a: activation, c: 3x3 convolution, d: channel dropout
    nonlinearity: Nonlinearity
    batch_norm: bool
    dropout: float  # probability; 0: none

    @property
    def steps(self) -> str:
        """The letters of the layout that are there."""
        absent = "b" * (not self.batch_norm) + "d" * (not self.dropout)
        return "".join(letter for letter in self.layout if letter not in absent)


class Gate(nn.Module):
    """act(v) sigmoid(s), where v and s are the halves of a 1x1 convolution: (n, c, h, w) as is."""

    def __init__(self, style: BlockStyle):
        super().__init__()
        self.act = ACTIVATIONS[style.nonlinearity]
        self.conv = nn.Conv2d(style.channels, 2 * style.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, switch = self.conv(x).chunk(2, 1)
        return self.act(value) * switch.sigmoid()


class GatedResidual(nn.Module):
    """x + gate(f(x)), f in the order that the style's layout spells: (n, c, h, w) as is.

    `masks` gives what each channel dropout multiplies with, (n, c, 1, 1); None: no dropout.
    """

    def __init__(self, style: BlockStyle, gated: bool):
        super().__init__()
        self.steps = style.steps
        self.act = ACTIVATIONS[style.nonlinearity]
        c = style.channels
        self.convs = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(self.steps.count("b")))
        self.gate = Gate(style) if gated else None

    def forward(self, x: Tensor, masks: Iterator[Tensor] | None = None) -> Tensor:
        convs, norms = iter(self.convs), iter(self.norms)
        y, spare = x, False  # spare: no backward pass needs y, so it may be overwritten
        for step in self.steps if masks is not None else self.steps.replace("d", ""):
            if step == "c":
                y = next(convs)(y)
            elif step == "b":
                y = next(norms)(y)
            elif step == "a":
                y = self.act(y, inplace=spare)
            elif masks is not None:
                y = y.mul_(next(masks)) if spare else y * next(masks)
            spare = step != "a"
        return x + (y if self.gate is None else self.gate(y))


class Resampled(nn.Module):
    """A gated residual block after a 3x3 convolution that halves or doubles the size, if either."""

    def __init__(self, style: BlockStyle, gated: bool, resample: Literal["down", "up"] | None):
        super().__init__()
        c = style.channels
        self.resample: nn.Module = nn.Identity()
        if resample == "down":
            self.resample = nn.Conv2d(c, c, 3, stride=2, padding=1)
        elif resample == "up":
            self.resample = nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, output_padding=1)
        self.residual = GatedResidual(style, gated)

    def forward(self, x: Tensor, masks: Iterator[Tensor] | None = None) -> Tensor:
        return self.residual(self.resample(x), masks)


class Merge(nn.Module):
    """Two maps (n, c, h, w) into one: a 1x1 convolution of both, then maybe a gated block."""

    def __init__(self, style: BlockStyle, kind: Literal["linear", "residual"]):
        super().__init__()
        self.conv = nn.Conv2d(2 * style.channels, style.channels, 1)
        self.residual = GatedResidual(style, gated=True) if kind == "residual" else None

    def forward(self, u: Tensor, v: Tensor, masks: Iterator[Tensor] | None = None) -> Tensor:
        y = self.conv(torch.cat([u, v], 1))
        return y if self.residual is None else self.residual(y, masks)


def upsample_twice(x: Tensor) -> Tensor:
    """Bilinear interpolation between pixel centres, (n, c, h, w) -> (n, c, 2 h, 2 w).

    That of F.interpolate, whose gradient differs from run to run on CUDA.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)
        x = torch.stack([x.lerp(before, 0.25), x.lerp(after, 0.25)], dim + 1).flatten(dim, dim + 1)
    return x


@torch.no_grad()
def data_dependent_init_(
    module: nn.Module,
    run: Callable[[], object],  # one forward pass over the batch to normalise for
    normal: Callable[[str, Sequence[int]], Tensor],  # standard normal numbers by name and shape
    scale: float = 0.1,
) -> None:
    """Weights under which every convolution gives mean 0 and deviation `scale` on that batch.

    Weights start from N(0, 2 / fan-in); then, in the order of the pass, each convolution is
    normalised given what the normalised ones before it put out (T. Salimans, D. P. Kingma, "Weight
    Normalization", NeurIPS 2016, section 3). Raises ValueError for a convolution without a bias.
    """
    convolutions = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    }
    for name, layer in convolutions.items():
        if layer.bias is None:
            raise ValueError(f"data_dependent_init_: the convolution {name!r} must have a bias")

    def normalise(layer: nn.Module, _: object, y: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None
        dims = [dim for dim in range(y.dim()) if dim != 1]
        variance, mean = torch.var_mean(y, dims)
        factor = scale / (variance + 1e-5).sqrt()
        layer.bias.copy_((layer.bias - mean) * factor)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        layer.weight.mul_(factor[:, None, None] if transposed else factor[:, None, None, None])
        return (y - mean[:, None, None]) * factor[:, None, None]

    hooks = []
    for name, layer in convolutions.items():
        fan_in = layer.weight[0].numel()
        layer.weight.copy_(normal(name, layer.weight.shape) * (2 / fan_in) ** 0.5)
        assert layer.bias is not None
        layer.bias.zero_()
        hooks.append(layer.register_forward_hook(normalise))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()


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


@torch.no_grad()
def glorot_(module: nn.Module) -> None:
    """Start dense and convolutional layers Glorot-uniform, biases at 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


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


def gaussian_kl(
    mean: Tensor,  # (n, d)
    log_variance: Tensor,  # (n, d)
    clamp: float | None = None,
) -> Tensor:  # (n,) nats
    """KL(N(mean, exp(log_variance)) || N(0, I)), both arguments clamped to +/-clamp if given."""
    if clamp is not None:
        mean, log_variance = mean.clamp(-clamp, clamp), log_variance.clamp(-clamp, clamp)
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
