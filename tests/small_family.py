"""A model family of one's own: all that training and the commands need to know of it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fastlatent.models import LatentModel
from fastlatent.noise import Noise


@dataclass(frozen=True)
class SmallConfig:
    family: Literal["small"] = "small"
    image_shape: tuple[int, ...] = (1, 28, 28)
    dim: int = 8


class Small(LatentModel):
    """An autoencoder of two linear maps, with the latents pulled towards N(0, I)."""

    def __init__(self, config: SmallConfig):
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.latent_dim = config.dim
        self.latent_kind = "real"
        self.loss_unit = "squared error per image"
        channels, height, width = config.image_shape
        pixels = channels * height * width
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, config.dim))
        self.decoder = nn.Sequential(
            nn.Linear(config.dim, pixels), nn.Sigmoid(), nn.Unflatten(1, config.image_shape)
        )

    def forward(
        self, x: Tensor, target: Tensor | None = None, noise: Noise | None = None
    ) -> dict[str, Tensor]:
        z = self.encode(x)
        error = (self.decode(z) - self._checked_target(x, target)).square().flatten(1).sum(1)
        return {"loss": error + 0.1 * z.square().sum(1), "error": error}

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)
