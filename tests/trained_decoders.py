"""The decoders of Michelis and Becker's VAE and BiGAN as plain modules, for tests and benchmarks.

Blocks are those of their weight files: spectral norm by hooks, batch norm, ELU. Without the files
the same architecture gets random weights and statistics.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

LATENT, FOLDER = 16, "generative-latent-space"
DATA = Path(folder) if (folder := os.environ.get("FASTLATENT_DATA")) else None
LATENTS = {
    "0": torch.zeros(LATENT, dtype=torch.float64),
    "z_lin": torch.linspace(-1, 1, LATENT, dtype=torch.float64),
    "ones": torch.ones(LATENT, dtype=torch.float64),
    "-ones": -torch.ones(LATENT, dtype=torch.float64),
}

# Of the trained weights: the sum of the output y, that of its squares, and y[406].
OUTPUTS = {
    "vae mean": {
        "0": (-608.26500, 621.71424, 0.225843),
        "z_lin": (-540.62591, 636.22018, -0.767038),
        "ones": (-451.31977, 603.53038, -0.789884),
    },
    "vae variance": {
        "0": (160.07044, 426.41734, 0.002355),
        "z_lin": (259.64033, 3282.44919, 0.003069),
        "ones": (429.61320, 9851.91455, 0.004221),
    },
    "bigan": {
        "0": (-532.32906, 694.63421, 0.913401),
        "z_lin": (-583.71597, 687.60134, 0.881485),
        "ones": (-661.10693, 723.74366, -0.251700),
    },
}


class Block(nn.Module):
    """Transposed convolution under spectral norm, batch norm, ELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.ConvTranspose = spectral_norm(nn.ConvTranspose2d(inputs, outputs, kernel, stride))
        self.BatchNorm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.BatchNorm(self.ConvTranspose(x)))


class BiGANGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(LATENT, 1152)
        last = nn.Conv2d(3, 1, 1)
        self.conv = nn.Sequential(Block(32, 16, 3, 2), Block(16, 3, 4, 2), last, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(self.lin(z).view(-1, 32, 6, 6))


class RBF(nn.Module):
    """Precision: a floor, and weighted bumps around centres (Arvanitidis et al. 2018)."""

    def __init__(self, centers: int = 64):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(centers, LATENT))
        self.bandwidth = nn.Parameter(torch.full((centers,), 0.1))
        self.zeta = nn.Parameter(torch.tensor([1e-2]))
        self.W = nn.Linear(centers, 784, bias=False)
        with torch.no_grad():
            self.W.weight.uniform_(0, 0.1)

    def forward(self, z: Tensor) -> Tensor:
        squared = (z[:, None] - self.centers).square().sum(2)
        return self.W(torch.exp(-self.bandwidth * squared)) + self.zeta


class VAEDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(LATENT, 1152)
        self.conv = nn.Sequential(Block(32, 32, 3, 2), Block(32, 32, 4, 2))
        self.Xmean = nn.Sequential(nn.Conv2d(32, 1, 1), nn.Tanh())
        self.rbfNN = RBF()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.Xmean(self.conv(self.lin(z).view(-1, 32, 6, 6))), 1 / self.rbfNN(z)


class Mean(nn.Module):
    """The mean of a stochastic decoder alone."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)[0]


def bigan(root: Path | None, dtype: torch.dtype = torch.float64) -> BiGANGenerator:
    """The trained generator where the folder of data is given, random weights elsewhere."""
    return _load(BiGANGenerator, root, "trainedBiGAN_G", dtype)


def vae(root: Path | None, dtype: torch.dtype = torch.float64) -> VAEDecoder:
    """As bigan: the decoder with its variance."""
    return _load(VAEDecoder, root, "trainedVAE_D", dtype)


def _load(make, root, name, dtype):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = make()
        if root is None:
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.5, 2)
    if root is not None:
        module.load_state_dict(load_file(root / FOLDER / f"{name}.safetensors"))
    return module.to(dtype).eval()
