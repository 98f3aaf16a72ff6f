"""VAE and BiGAN with the names and the forward passes of the geometry paper's program."""

import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class Block(nn.Module):
    """Spectrally normalised layer, batch norm, ELU."""

    def __init__(self, name: str, layer: nn.Module, norm: nn.Module):
        super().__init__()
        self.add_module(name, spectral_norm(layer))
        self.BatchNorm = norm
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.elu(self.BatchNorm(self.get_submodule(self.name)(x)))


def conv(i: int, o: int, k: int) -> Block:
    return Block("Convolution", nn.Conv2d(i, o, k, 2), nn.BatchNorm2d(o))


def conv_t(i: int, o: int, k: int) -> Block:
    return Block("ConvTranspose", nn.ConvTranspose2d(i, o, k, 2), nn.BatchNorm2d(o))


def lin(i: int, o: int) -> Block:
    return Block("Linear", nn.Linear(i, o), nn.BatchNorm1d(o))


class RBF(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        for name, size in (("centers", (4 * d, d)), ("bandwidth", (4 * d,)), ("zeta", (1,))):
            self.register_buffer(name, torch.rand(size) + 0.1)
        self.W = nn.Linear(4 * d, 784, bias=False)
        self.W.weight.data.abs_()

    def forward(self, z: Tensor) -> Tensor:
        squares = (z[:, None] - self.centers).square().sum(-1)
        return 1 / (self.W(torch.exp(-self.bandwidth * squares)) + self.zeta)


class VAEEncoder(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.enc = nn.ModuleList([conv(1, 32, 4), conv(32, 32, 3)])
        self.zmean, self.zlogvar = nn.Linear(1152, d), nn.Linear(1152, d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.enc[1](self.enc[0](x)).flatten(1)
        return self.zmean(y), self.zlogvar(y)


class VAEDecoder(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.rbfNN = RBF(d)
        self.lin = nn.Linear(d, 1152)
        self.conv = nn.ModuleList([conv_t(32, 32, 3), conv_t(32, 32, 4)])
        self.Xmean = nn.ModuleList([nn.Conv2d(32, 1, 1)])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv[1](self.conv[0](self.lin(z).reshape(-1, 32, 6, 6)))
        return self.Xmean[0](y).tanh(), self.rbfNN(z)


class Generator(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.lin = nn.Linear(d, 1152)
        self.conv = nn.ModuleList([conv_t(32, 16, 3), conv_t(16, 3, 4), nn.Conv2d(3, 1, 1)])

    def forward(self, z: Tensor) -> Tensor:
        y = self.lin(z).reshape(-1, 32, 6, 6)
        for layer in self.conv:
            y = layer(y)
        return y.tanh()


class Encoder(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.conv = nn.ModuleList([conv(1, 16, 4), conv(16, 32, 3)])
        self.lin = nn.Linear(1152, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.conv[1](self.conv[0](x)).flatten(1))


class Discriminator(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.Xconv = nn.ModuleList([conv(1, 16, 4), conv(16, 32, 3)])
        self.zlin = nn.ModuleList([lin(d, 16), lin(16, 32)])
        self.post_cat = nn.ModuleList([lin(1184, 32), nn.Linear(32, 1)])

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = self.Xconv[1](self.Xconv[0](x)).flatten(1)
        w = self.zlin[1](self.zlin[0](z))
        return self.post_cat[1](self.post_cat[0](torch.cat([y, w], 1))).sigmoid()


NETWORKS = {
    "vae": {"E": VAEEncoder, "D": VAEDecoder},
    "bigan": {"G": Generator, "E": Encoder, "D": Discriminator},
}


def original_networks(kind: str, d: int) -> dict[str, nn.Module]:
    """Random networks in evaluation mode, with statistics as training leaves them, by letter."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(d)
        networks = {letter: make(d) for letter, make in NETWORKS[kind].items()}
        x, z = torch.rand(4, 1, 28, 28), torch.randn(4, d)
        inputs = {"E": (x,), "G": (z,), "D": (z,) if kind == "vae" else (x, z)}
        for letter, network in networks.items():
            for _ in range(20):
                network(*inputs[letter])  # each pass brings the norms of the weights closer to 1
            for module in network.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.2)
                    module.running_mean.normal_(std=0.2)
                    module.running_var.uniform_(0.5, 1.5)
                    module.num_batches_tracked.fill_(117)
    return {letter: network.eval() for letter, network in networks.items()}
