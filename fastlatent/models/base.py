"""The contract that every model family follows; what only some can is in capabilities.py."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlatent.noise import Noise, uncompiled

NATS = "nats per image"


class LatentModel(nn.Module, ABC):
    """Images x (n, c, h, w) in [0, 1] on one side, latents z (n, d) on the other.

    `forward` gives per-image losses, `encode` and `decode` the two maps. Randomness comes only
    through the `noise` argument, so that a resumed run draws what it would have drawn.
    """

    config: Any  # frozen dataclass; models.build(config, seed) makes the model again
    image_shape: tuple[int, int, int]  # (c, h, w)
    latent_dim: int  # d
    latent_kind: Literal["bits", "real"]  # "bits": z is +/-1
    loss_unit: str  # of "loss", for example "nats per image"

    @abstractmethod
    def forward(
        self,
        x: Tensor,  # (n, c, h, w)
        target: Tensor | None = None,  # (n, c, h, w), what to reconstruct; x itself by default
        noise: Noise | None = None,  # needed where the configuration draws random numbers
    ) -> dict[str, Tensor]:  # each (n,), per image
        """Per-image values: "loss" is averaged and minimised, the others are logged."""

    @property
    def units(self) -> dict[str, str]:
        """Unit of each value of `forward`; "" of one that has none, such as a count."""
        return {"loss": self.loss_unit}

    def unit_of(self, value: str) -> str:
        """Unit of a value of `forward`, by its name; "" where it has none or none is known."""
        return self.units.get(value, "")

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes +/-1, or the posterior mean: (n, c, h, w) -> (n, d)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1]: (n, d) -> (n, c, h, w)."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)): (n, c, h, w) -> (n, c, h, w)."""
        return self.decode(self.encode(x))

    @uncompiled
    def _latent_noise(self, noise: Noise, mean: Tensor) -> Tensor:
        """Standard normal numbers, as many as there are means (n, d)."""
        return noise.normal("latent", mean.shape, mean.device, mean.dtype)

    @uncompiled
    def _prior_stream(self, noise: Noise, mean: Tensor) -> torch.Generator:
        """What a prior draws by, where its density takes random numbers."""
        return noise.stream("prior", mean.device)

    def _check_images(self, name: str, images: Tensor) -> None:
        expected = f"{type(self).__name__}: {name} must be floating-point images in [0, 1]"
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(f"{expected}; got {_describe(images)}")
        if images.dim() != 4 or images.shape[1:] != torch.Size(self.image_shape):
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"{expected} of shape (n, {shape}); got {tuple(images.shape)}")

    def _checked_target(self, x: Tensor, target: Tensor | None) -> Tensor:
        """What to reconstruct: x itself by default."""
        if target is None:
            return x
        self._check_images("target", target)
        if len(target) != len(x):
            raise ValueError(
                f"{type(self).__name__}: target must hold {len(x)} images, one for each of x; "
                f"got {len(target)}"
            )
        return target

    def _check_latents(self, name: str, latents: Tensor) -> None:
        expected = f"{type(self).__name__}: {name} must be floating-point latents"
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            raise TypeError(f"{expected}; got {_describe(latents)}")
        if latents.dim() != 2 or latents.shape[1] != self.latent_dim:
            raise ValueError(
                f"{expected} of shape (n, {self.latent_dim}); got {tuple(latents.shape)}"
            )


def _describe(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
