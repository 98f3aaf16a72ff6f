"""Checkpoints as the authors' Ladder VAE writes them, laid out by hand from its source.

The values are a function of the sorted names, so that numbers computed with the authors' program
(float64, evaluation mode) can be compared with ours.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Positions of the batch norms, the convolutions and the gate in a residual block:
# by type, batch norm, dropout.
POSITIONS = {
    ("cabdcabd", True, True): ((2, 6), (0, 4), 8),
    ("cabdcabd", True, False): ((2, 5), (0, 3), 6),
    ("cabdcabd", False, True): ((), (0, 3), 6),
    ("cabdcabd", False, False): ((), (0, 2), 4),
    ("bacdbac", True, True): ((0, 4), (2, 6), 7),
    ("bacdbac", True, False): ((0, 3), (2, 5), 6),
    ("bacdbac", False, True): ((), (1, 4), 5),
    ("bacdbac", False, False): ((), (1, 3), 4),
    ("bacdbacd", True, True): ((0, 4), (2, 6), 8),
    ("bacdbacd", False, True): ((), (1, 4), 6),
}


@dataclass(frozen=True)
class Original:
    """Settings of the authors' program, under its own words."""

    image: tuple[int, int, int]
    likelihood: str
    z_dims: tuple[int, ...]
    downsample: tuple[int, ...]
    blocks: int = 2
    filters: int = 6
    residual: str = "bacdbacd"
    batch_norm: bool = True
    dropout: bool = True
    merge: str = "residual"
    skip: bool = True
    gated: bool = True
    initial_downscaling: bool = True
    nonlin: str = "elu"

    @property
    def top_size(self) -> tuple[int, int]:
        factor = 2 ** (sum(self.downsample) + self.initial_downscaling)
        return -(-self.image[1] // factor), -(-self.image[2] // factor)


def layout(original: Original) -> dict[str, tuple[int, ...]]:
    """Every name of the checkpoint with the shape of its tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    f, layers = original.filters, len(original.z_dims)
    channels = original.image[0]

    def conv(name: str, out: int, inp: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, inp, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    def block(name: str, gated: bool) -> None:
        norms, convs, gate = POSITIONS[original.residual, original.batch_norm, original.dropout]
        for j in norms:
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.{j}.{leaf}"] = (f,)
            shapes[f"{name}.{j}.num_batches_tracked"] = ()
        for j in convs:
            conv(f"{name}.{j}", f, f, 3)
        if gated:
            conv(f"{name}.{gate}.conv", 2 * f, f, 1)

    conv("first_bottom_up.0", f, channels, 5)
    block("first_bottom_up.2.res.block", gated=False)
    for i, (z, steps) in enumerate(zip(original.z_dims, original.downsample, strict=True)):
        top, down = i == layers - 1, f"top_down_layers.{i}"
        for b in range(original.blocks):
            for name in (f"bottom_up_layers.{i}.net.{b}", f"{down}.deterministic_block.{b}"):
                if b < steps:
                    conv(f"{name}.pre_conv", f, f, 3)
                block(f"{name}.res.block", original.gated)
        conv(f"{down}.stochastic.conv_in_q", 2 * z, f, 3)
        conv(f"{down}.stochastic.conv_out", f, z, 3)
        if top:
            shapes[f"{down}.top_prior_params"] = (1, 2 * z, *original.top_size)
            continue
        conv(f"{down}.stochastic.conv_in_p", 2 * z, f, 3)
        if original.merge == "linear":
            conv(f"{down}.merge.layer", f, 2 * f, 1)
        else:
            conv(f"{down}.merge.layer.0", f, 2 * f, 1)
            block(f"{down}.merge.layer.1.block", gated=True)
        if original.skip:
            conv(f"{down}.skip_connection_merger.layer.0", f, 2 * f, 1)
            block(f"{down}.skip_connection_merger.layer.1.block", gated=True)
    for b in range(original.blocks):
        block(f"final_top_down.{b + original.initial_downscaling}.res.block", original.gated)
    parameters = {
        "bernoulli": channels,
        "gaussian": 2 * channels,
        "discr_log": 2 * channels,
        "discr_log_mix": 100,
    }
    conv("likelihood.parameter_net", parameters[original.likelihood], f, 3)
    return shapes


def original_checkpoint(original: Original) -> dict[str, Tensor]:
    """A checkpoint whose values anybody can make again, in float64."""
    state: dict[str, Tensor] = {}
    rank = 0
    for name, shape in sorted(layout(original).items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
            continue
        index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        wave = torch.sin(0.7 * index + 1.3 * rank + 0.1).reshape(shape)
        rank += 1
        if name.endswith("running_var"):
            state[name] = 1 + 0.3 * wave
        elif name.endswith("running_mean") or name.endswith("bias"):
            state[name] = 0.1 * wave
        elif name.endswith("top_prior_params"):
            state[name] = 0.3 * wave
        elif len(shape) == 1:
            state[name] = 1 + 0.1 * wave
        else:
            state[name] = 0.5 * wave / wave[0].numel() ** 0.5
    return state


class Golden(NamedTuple):
    """What the authors' program computes from such a checkpoint, latents forced to `latents`."""

    original: Original
    parameters: int
    features: tuple[float, ...]  # sums of the bottom-up features, bottom first
    kl_sampled: tuple[tuple[float, float], ...]  # of each layer, for both images
    kl_analytical: tuple[tuple[float, float], ...]
    likelihood: float  # sum of its raw parameters
    log_likelihood: tuple[float, float]  # of both images; exact where the original floors


_A = Original((1, 10, 7), "bernoulli", (3, 2, 4), (1, 0, 1))
GOLDEN = {
    "A": Golden(
        _A,
        18411,
        (6.337943131, 5.002500289, 1.145912593),
        ((-2.791234462, -3.091945832), (2.111661610, 1.409105742), (0.025935316, -0.003700807)),
        ((0.478961075, 0.478919730), (0.257438566, 0.278872094), (0.259320319, 0.259170151)),
        -7.226764625,
        (-48.467027557, -48.607587802),
    ),
    "B": Golden(
        Original((3, 7, 9), "discr_log_mix", (3, 2), (1, 1)),
        18502,
        (6.438141207, 1.472605258),
        ((-2.177423526, -2.464856437), (0.541855318, 0.541908209)),
        ((0.601453844, 0.533285726), (0.070459042, 0.070427887)),
        1.942300150,
        (-1178.433463248, -1183.439553998),
    ),
    "C": Golden(
        Original(
            (1, 10, 7),
            "bernoulli",
            (3, 2, 4),
            (1, 0, 1),
            residual="cabdcabd",
            merge="linear",
            skip=False,
            gated=False,
            nonlin="leakyrelu",
        ),
        14007,
        (12.695641514, 21.778595095, 2.200595999),
        ((2.214083698, 2.859750334), (-1.555432942, -1.637501178), (0.492980273, 0.099997938)),
        ((0.491252051, 0.517013568), (0.185410503, 0.202645968), (0.283440658, 0.285624984)),
        -6.261093796,
        (-48.535311013, -48.598692127),
    ),
    "D": Golden(
        Original(
            (1, 10, 7),
            "bernoulli",
            (3, 2, 4),
            (1, 0, 1),
            blocks=1,
            residual="bacdbac",
            initial_downscaling=False,
            nonlin="selu",
        ),
        13067,
        (23.462791262, 23.979930606, 0.949932095),
        ((8.625336683, 6.908963630), (-3.979308903, -3.520387744), (0.582288290, 0.000271375)),
        ((1.077346209, 1.079669760), (0.660126585, 1.014727195), (0.904740160, 0.859741366)),
        12.428239442,
        (-48.679753036, -48.584690684),
    ),
    "E": Golden(
        Original((3, 8, 8), "discr_log", (3, 2), (0, 2)),
        13328,
        (-9.366458705, 0.411673731),
        ((1.062488004, 1.734616845), (0.358445312, 0.249552535)),
        ((0.575598332, 0.574703094), (0.067969562, 0.067921357)),
        16.465651728,
        (-1149.825954328, -1156.081423403),
    ),
}


def images(original: Original) -> Tensor:
    """The two images that the numbers are of: (2, c, h, w) in [0, 1], float64."""
    n, c, h, w = torch.meshgrid(*map(torch.arange, (2, *original.image)), indexing="ij")
    if original.likelihood == "bernoulli":
        return ((3 * n + 5 * c + 7 * h + 11 * w) % 4 < 2).double()
    return ((37 * n + 53 * c + 11 * h + 29 * w) % 256).double() / 255


def latents(shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    """The latents that every layer is forced to: (2, c, h, w) each, bottom first, float64."""
    forced = []
    for i, shape in enumerate(shapes):
        axes = (torch.arange(size, dtype=torch.float64) for size in (2, *shape))
        n, c, h, w = torch.meshgrid(*axes, indexing="ij")
        forced.append(0.8 * torch.sin(1.1 * i + 0.9 * n + 0.5 * c + 0.31 * h + 0.17 * w))
    return forced
