"""The contract that every model family follows; training and the commands know nothing else."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlatent.data import Split
from fastlatent.noise import Noise
from fastlatent.priors import Normal, Prior

NATS = "nats per image"


@dataclass(frozen=True)
class Turn:
    """Part of a training step: a loss of its own, and the modules whose weights go down it."""

    name: str  # that `forward` is given as `turn`
    modules: tuple[nn.Module, ...]
    rate: float = 1.0  # factor of the learning rate
    unit: str = NATS  # of its loss


@dataclass(frozen=True)
class Group:
    """Weights that learn at a rate of their own."""

    modules: tuple[nn.Module, ...]
    rate: float = 1.0  # factor of the learning rate, on top of that of their turn
    decay: float | None = None  # factor after each epoch; None: that of all, --lr-decay


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

    def draw_prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Real latents from the prior (n, d): N(0, I) unless the family has another."""
        return torch.randn(n, self.latent_dim, generator=generator, device=generator.device)

    @property
    def latent_prior(self) -> Prior | None:
        """The distribution of real latents, if its density is known: N(0, I), as drawn above.

        None where latents are bits, or `draw_prior` has been given another distribution; a family
        that knows the density of that one says so here.
        """
        own = type(self).draw_prior is not LatentModel.draw_prior
        return None if own or self.latent_kind == "bits" else Normal(self.latent_dim)

    # What a prior that is fitted after training stands on

    @property
    def prior_dim(self) -> int:
        """Number of latents that a fitted prior is over; the model itself draws any others."""
        return self.latent_dim

    def stored_latents(self, split: Split) -> Tensor | None:
        """The latents of the split's images (n, d), where the model keeps them itself.

        Raises ValueError where it keeps those of other images.
        """
        return None

    def gaussian_posterior(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of q(z | x), each (n, d); None where it is no diagonal Gaussian."""
        return None

    def draw_latents(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """A draw of q(z | x), its mean without noise: (n, c, h, w) -> (n, prior_dim).

        Without a posterior it is the code.
        """
        posterior = self.gaussian_posterior(x)
        if posterior is None:
            return self.encode(x)
        mean, std = posterior
        if noise is None:
            return mean
        return mean + std * noise.normal("latent", mean.shape, mean.device, mean.dtype)

    def project(self, z: Tensor) -> Tensor:
        """The nearest latents in the region where the model has any: (..., d) -> (..., d)."""
        return z

    @property
    def search(self) -> str | None:
        """How codes of images are found, in a few words, where that takes a search; None: encoded.

        Where there are learned codes, those are taken.
        """
        return None

    @property
    def walks_straight(self) -> bool:
        """Whether a walk through real latents goes straight, and not around the origin, by default.

        Straight lines leave a sphere, or the shell where N(0, I) has its mass.
        """
        return False

    def complete_latents(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Latents to decode from draws of a fitted prior: (n, prior_dim) -> (n, d)."""
        return z

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """How training lays out the weights, and by them the features, on a device."""
        return torch.channels_last

    @property
    def learns_codes(self) -> bool:
        """Whether training learns a latent for each of its images, which `forward` is given."""
        return False

    def learned_latents(self, split: Split, index: Tensor) -> Tensor | None:
        """Latents learned with the weights for the split's images at `index` (k,): (k, d).

        None where there are no such, so that images are to be encoded.
        """
        return None

    def latents_of(self, x: Tensor, split: Split, index: Tensor) -> Tensor:
        """Latents (k, d) of the split's images x (k, c, h, w): learned if there are, else encoded.

        `index` (k,) says which images of the split they are.
        """
        learned = self.learned_latents(split, index)
        return self.encode(x) if learned is None else learned

    @property
    def data_dependent(self) -> bool:
        """Whether training begins with `initialise`."""
        return False

    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Set the weights from a batch of training images (n, c, h, w), once, before training."""
        raise NotImplementedError(f"{type(self).__name__} is not initialised from data")

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of a training step, where it does not just move all weights down the loss."""
        return ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The weights that learn at rates of their own; a weight is in one group at most."""
        return ()

    @property
    def resting(self) -> tuple[nn.Module, ...]:
        """Modules whose weights the coming step leaves as they are."""
        return ()

    def begin_epoch(self, epoch: int) -> None:
        """Take up what changes with the epoch, counted from 0; nothing by default."""

    def idle_in(self, epochs: float) -> str | None:
        """What a training of so many epochs leaves unused, in a sentence; None: nothing."""
        return None

    def refit_images(self, epochs: int) -> int:
        """How many training images `refit` wants after so many epochs; 0: none, it rests."""
        return 0

    def refit(self, batches: Iterable[Tensor], noise: Noise, epochs: int) -> dict[str, float]:
        """Fit anew what no gradient trains, after so many epochs, from images (n, c, h, w) each.

        Returns numbers to log. To be called in evaluation mode and without gradients.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to fit between epochs")

    def held_out_log_prob(self, batches: Iterable[Tensor], noise: Noise) -> float:
        """Mean log-density in nats, by what `refit` has fitted, of a draw for each of other images.

        To be called as `refit` is.
        """
        raise NotImplementedError(f"{type(self).__name__} fits no density between epochs")

    @property
    def terms(self) -> dict[str, tuple[str, ...]]:
        """Values of `forward` whose curves are drawn, those of one title together."""
        return {}

    @property
    def concluding_images(self) -> int:
        """How many training images `conclude` wants at most; 0: training ends without it."""
        return 0

    def conclude(self, batches: Iterable[Tensor], noise: Noise) -> None:
        """Fit what is fitted to the trained weights, from training images (n, c, h, w) each.

        Where the batches are no iterator, they can be read more than once, and are the same again.
        To be called in evaluation mode and without gradients.
        """
        raise NotImplementedError(f"{type(self).__name__} has nothing to fit after training")

    def begin_step(self, step: int) -> None:
        """Take up what changes with the optimizer step, counted from 0; nothing by default."""

    def corrupt(self, x: Tensor, noise: Noise | None) -> Tensor:
        """What `forward` shows the encoder: (n, c, h, w) -> (n, c, h, w); x itself by default."""
        return x

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)): (n, c, h, w) -> (n, c, h, w)."""
        return self.decode(self.encode(x))

    def reconstruction_of(self, x: Tensor, split: Split, index: Tensor) -> Tensor:
        """Reconstructions of the split's images x (k, c, h, w), by learned latents if there are."""
        learned = self.learned_latents(split, index)
        return self.reconstruct(x) if learned is None else self.decode(learned)

    def geometric_decoder(self) -> nn.Module:
        """The map whose geometry is studied, as a frozen copy in evaluation mode.

        Latents (n, d) to images in [-1, 1], (n, ...), or to their means and variances. Raises
        ValueError where latents are bits.
        """
        if self.latent_kind != "real":
            raise ValueError(
                f"{type(self).__name__}: the geometry of latents needs real ones; these are bits"
            )
        return SignedDecoder(copy.deepcopy(self)).eval().requires_grad_(False)

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


class SignedDecoder(nn.Module):
    """A model's decoded images, in [-1, 1]: (n, d) -> (n, c, h, w)."""

    def __init__(self, model: LatentModel):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return 2 * self.model.decode(z) - 1


def _describe(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
