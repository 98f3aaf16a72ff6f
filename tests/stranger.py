"""A model that a stranger wrote: a plain module, which imports nothing of ours."""

from torch import Tensor, nn


class Wide(nn.Module):
    """A hidden layer with its activation, by name."""

    def __init__(self, width: int, out: int, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.width, self.out, self.activation = width, out, activation
        self.layers = nn.Sequential(nn.Linear(width, 24), activation(), nn.Linear(24, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class Stranger(nn.Module):
    """An autoencoder whose latents are pulled towards zero."""

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int = 3, pull: float = 0.1):
        super().__init__()
        self.image_shape, self.latent_dim, self.pull = image_shape, latent_dim, pull
        channels, height, width = image_shape
        self.down = Wide(channels * height * width, latent_dim)
        self.up = Wide(latent_dim, channels * height * width, activation=nn.Tanh)

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z).sigmoid().unflatten(1, self.image_shape)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        return (self.decode(z) - x).square().flatten(1).sum(1) + self.pull * z.square().sum(1)
