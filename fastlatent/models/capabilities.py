"""What only some families can, one protocol each: asked for by `isinstance`, never by family.

The functions below the protocols answer for every model, by the protocol where there is one.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from fastlatent.data import Split
from fastlatent.models.base import NATS, LatentModel
from fastlatent.models.learned import LearnedLatents, Room
from fastlatent.noise import Noise
from fastlatent.priors import Normal, Prior, PriorKind

# Latents of images


@runtime_checkable
class ShapedLater(Protocol):
    """The model may be made before its images are known; it has no `image_shape` until then."""

    def shaped(self, image_shape: tuple[int, int, int]) -> LatentModel:
        """The same model around images (c, h, w)."""


@runtime_checkable
class GaussianPosterior(Protocol):
    """q(z | x) is a diagonal Gaussian."""

    def gaussian_posterior(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of q(z | x), each (n, d); None where settings make it another."""


@runtime_checkable
class Inferring(Protocol):
    """Inference has a first part without random numbers, which `forward` takes as `features`.

    So images whose losses and latents are both wanted are encoded once.
    """

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """What inference finds in images: (n, c, h, w) -> (n, ...) each."""

    def latents_from(self, features: Sequence[Tensor]) -> Tensor:
        """What `encode` gives for images with these features: (n, ...) each -> (n, d)."""


@runtime_checkable
class LearnsLatents(Protocol):
    """Training learns a latent for each of its images, which `forward` is given as `latents`.

    Those of other images are found by a search.
    """

    @property
    def search(self) -> str:
        """How latents of other images are found, in a few words."""

    def stored_latents(self, split: Split) -> Tensor | None:
        """The learned latents of the split's images (n, d), where there are any.

        Raises ValueError where they are those of other images.
        """

    def learned_latents(self, split: Split, index: Tensor) -> Tensor | None:
        """Those of the images at `index` (k,): (k, d)."""

    def latents_to_learn(self, split: Split, room: Room) -> LearnedLatents:
        """Room for the latents of the split's images as training moves them, yet without values."""


@runtime_checkable
class Corrupting(Protocol):
    """The encoder is shown damaged images."""

    def corrupt(self, x: Tensor, noise: Noise | None) -> Tensor:
        """What the encoder sees: (n, c, h, w) -> (n, c, h, w); x itself where nothing is done."""


# Latents without images


@runtime_checkable
class OwnPrior(Protocol):
    """Latents are drawn from another distribution than N(0, I)."""

    leaves_noise_out: bool  # whether `draw_prior` takes noise=False, as Prior.sample does

    @property
    def latent_prior(self) -> Prior | None:
        """That distribution; None where its density is not known."""

    def draw_prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents (n, d)."""


class NoiseFree(OwnPrior, Protocol):
    """Latents are drawn with or without the last, independent noise of a prior in two steps."""

    def draw_prior(self, n: int, generator: torch.Generator, noise: bool = True) -> Tensor:
        """Latents (n, d); see Prior.sample for `noise`."""


@runtime_checkable
class PartialPrior(Protocol):
    """A prior fitted after training is over some of the latents; the model draws the others."""

    @property
    def prior_dim(self) -> int:
        """Number of latents that the prior is over."""

    def draw_latents(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Those of a draw of q(z | x), its mean without noise: (n, c, h, w) -> (n, prior_dim)."""

    def complete_latents(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """All latents, drawn given those: (n, prior_dim) -> (n, d)."""


@runtime_checkable
class Bounded(Protocol):
    """Latents stay in a region."""

    walks_straight: bool  # whether straight lines between latents stay in the region

    def project(self, z: Tensor) -> Tensor:
        """The nearest latents in the region: (..., d) -> (..., d)."""


@runtime_checkable
class LearnedPrior(Protocol):
    """The prior is a module that learns with the model, and that another can stand in for."""

    @property
    def prior_kind(self) -> PriorKind:
        """What the prior is now."""

    def under(self, prior: Prior) -> AbstractContextManager[None]:
        """The model with another prior, until the end of the block."""

    def untrained_prior(self, kind: PriorKind, dim: int) -> Prior:
        """A prior of that kind for `dim` latents, sized as the model's own would be."""


@runtime_checkable
class ChoosesPrior(Protocol):
    """A configuration with a choice of priors."""

    def with_prior(self, kind: PriorKind) -> Self:
        """The same settings with a prior of that kind."""


class HasFeatures(Protocol):
    """A pass through the layers."""

    @property
    def features(self) -> Tensor:
        """What the likelihood takes, (n, f, h, w)."""


class PixelLikelihood(Protocol):
    """p(x | z), by the features of a pass."""

    def mean(self, features: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1]."""

    def sample(self, features: Tensor, noise: Noise) -> Tensor:
        """Images (n, c, h, w) drawn from it."""


@runtime_checkable
class Layered(Protocol):
    """Latents lie in layers, from fine to coarse, each drawn given those above."""

    layer_shapes: Sequence[tuple[int, ...]]  # (c, h, w) of each layer's latents
    likelihood: PixelLikelihood

    def sample_prior(
        self,
        n: int,
        noise: Noise,
        mode_layers: Collection[int] = (),
        constant_layers: Collection[int] = (),
    ) -> HasFeatures:
        """A pass with latents from the prior, for n images.

        Layers in `mode_layers` take its mean, those in `constant_layers` one draw for all n.
        """


@runtime_checkable
class CountsPixels(Protocol):
    """Pixels may have probabilities, by which a loss in nats can be told in bits."""

    def counts_pixels(self, binary: bool) -> bool:
        """Whether they have, of images that are `binary` or grey; densities are none."""


@runtime_checkable
class GeometricDecoder(Protocol):
    """The geometry of latents is that of another map than `decode`."""

    def geometric_decoder(self) -> nn.Module:
        """That map, as a frozen copy in evaluation mode.

        Latents (n, d) to images in [-1, 1], (n, ...), or to their means and variances.
        """


# Training


@dataclass(frozen=True)
class AlternatingStep:
    """One of several optimizer steps that are taken in turn, each with a loss of its own."""

    name: str  # given to `forward` as `alternating_step`
    modules: tuple[nn.Module, ...]  # modules this step optimises
    rate: float = 1.0  # factor of the learning rate
    unit: str = NATS  # of its loss


@dataclass(frozen=True)
class Group:
    """Weights that learn at a rate of their own."""

    modules: tuple[nn.Module, ...]
    rate: float = 1.0  # factor of the learning rate, on top of that of the alternating step
    decay: float | None = None  # factor after each epoch; None: that of all, --lr-decay


@runtime_checkable
class Alternating(Protocol):
    """A training step consists of alternating steps, one after the other."""

    @property
    def alternating_steps(self) -> tuple[AlternatingStep, ...]:
        """Those steps; () where settings choose one step for all weights."""


@runtime_checkable
class Staged(Protocol):
    """Parts of the model learn at rates of their own, and are frozen in some epochs."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The weights that learn at rates of their own; a weight is in one group at most."""

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        """Modules that the coming step does not optimise."""

    def begin_epoch(self, epoch: int) -> None:
        """Take up what changes with the epoch, counted from 0."""

    def idle_in(self, epochs: float) -> str | None:
        """What a training of so many epochs leaves unused, in a sentence; None: nothing."""


@runtime_checkable
class Annealed(Protocol):
    """The loss changes from step to step."""

    def begin_step(self, step: int) -> None:
        """Take up what changes with the optimizer step, counted from 0."""


@runtime_checkable
class DataDependent(Protocol):
    """Training begins with weights that are set from images."""

    data_dependent: bool  # False where settings leave the weights as they are drawn

    def initialise(self, x: Tensor, noise: Noise) -> None:
        """Set the weights from a batch of training images (n, c, h, w)."""


@runtime_checkable
class Refitting(Protocol):
    """Between epochs something is fitted anew that no gradient trains.

    To be called in evaluation mode and without gradients.
    """

    def refit_images(self, epochs: int) -> int:
        """How many training images `refit` wants after so many epochs; 0: nothing is fitted."""

    def refit(self, batches: Iterable[Tensor], noise: Noise, epochs: int) -> dict[str, float]:
        """Fit after so many epochs, from images (n, c, h, w) each; gives numbers to log."""

    def held_out_log_prob(self, batches: Iterable[Tensor], noise: Noise) -> float:
        """Mean log-density in nats, by what is fitted, of a draw for each of other images."""


@runtime_checkable
class Finalising(Protocol):
    """A last fit follows training, to the trained weights.

    To be called in evaluation mode and without gradients.
    """

    @property
    def finalising_images(self) -> int:
        """How many training images `finalise` wants at most; 0: it is not called."""

    def finalise(self, batches: Iterable[Tensor], noise: Noise) -> None:
        """Fit, from training images (n, c, h, w) each.

        Where the batches are no iterator, they can be read more than once, and are the same again.
        """


@runtime_checkable
class LaidOut(Protocol):
    """Weights lie otherwise in memory than in channels_last."""

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """How training lays out the weights, and by them the features, on a device."""


@runtime_checkable
class Termed(Protocol):
    """The loss is made of terms whose curves are worth a look."""

    @property
    def terms(self) -> dict[str, tuple[str, ...]]:
        """Values of `forward` whose curves are drawn, those of one title together."""


# What holds of every model


def gaussian_posterior(model: LatentModel, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of q(z | x), each (n, d); None where it is no diagonal Gaussian."""
    return model.gaussian_posterior(x) if isinstance(model, GaussianPosterior) else None


def encoder_of(model: LatentModel) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The map from images to mean and deviation of q(z | x); ValueError where that is another."""

    def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = gaussian_posterior(model, x)
        if posterior is None:
            raise ValueError(f"{type(model).__name__} has no Gaussian posterior")
        return posterior

    return encoder


def stored_latents(model: LatentModel, split: Split) -> Tensor | None:
    """The learned latents of the split's images (n, d), where the model holds them."""
    return model.stored_latents(split) if isinstance(model, LearnsLatents) else None


def learned_latents(model: LatentModel, split: Split, index: Tensor) -> Tensor | None:
    """Latents (k, d) learned with the weights for the split's images at `index` (k,), if any."""
    return model.learned_latents(split, index) if isinstance(model, LearnsLatents) else None


def latents_of(model: LatentModel, x: Tensor, split: Split, index: Tensor) -> Tensor:
    """Latents (k, d) of the split's images x (k, c, h, w): learned if there are, else encoded."""
    learned = learned_latents(model, split, index)
    return model.encode(x) if learned is None else learned


def reconstruction_of(model: LatentModel, x: Tensor, split: Split, index: Tensor) -> Tensor:
    """Reconstructions of the split's images x (k, c, h, w), by learned latents if there are."""
    learned = learned_latents(model, split, index)
    return model.reconstruct(x) if learned is None else model.decode(learned)


def corrupted(model: LatentModel, x: Tensor, noise: Noise | None) -> Tensor:
    """What the encoder is shown of images x (n, c, h, w): x itself of most models."""
    return model.corrupt(x, noise) if isinstance(model, Corrupting) else x


def draw_prior(model: LatentModel, n: int, generator: torch.Generator) -> Tensor:
    """Real latents from the model's prior (n, d).

    Raises ValueError where latents are bits, which only what is fitted to their codes draws.
    """
    if isinstance(model, OwnPrior):
        return model.draw_prior(n, generator)
    if model.latent_kind == "bits":
        raise ValueError(
            f"draw_prior: model must have real latents, and those of {type(model).__name__} are "
            "bits, which have no prior of their own: draw them from a copula fitted to its codes"
        )
    return torch.randn(n, model.latent_dim, generator=generator, device=generator.device)


def leaves_noise_out(model: LatentModel) -> TypeGuard[NoiseFree]:
    """Whether the model draws latents without noise: it says so, which no signature tells."""
    return isinstance(model, OwnPrior) and model.leaves_noise_out


def latent_prior(model: LatentModel) -> Prior | None:
    """The distribution of real latents; None where its density is not known or latents are bits."""
    if isinstance(model, OwnPrior):
        return model.latent_prior
    return None if model.latent_kind == "bits" else Normal(model.latent_dim)


def prior_dim(model: LatentModel) -> int:
    """Number of latents that a prior fitted after training is over."""
    return model.prior_dim if isinstance(model, PartialPrior) else model.latent_dim


def draw_latents(model: LatentModel, x: Tensor, noise: Noise | None = None) -> Tensor:
    """What a prior is fitted to, of images x: (n, c, h, w) -> (n, prior_dim).

    A draw of q(z | x), its mean without noise; without a posterior what `encode` gives.
    """
    if isinstance(model, PartialPrior):
        return model.draw_latents(x, noise)
    posterior = gaussian_posterior(model, x)
    if posterior is None:
        return model.encode(x)
    mean, std = posterior
    if noise is None:
        return mean
    return mean + std * noise.normal("latent", mean.shape, mean.device, mean.dtype)


def complete_latents(model: LatentModel, z: Tensor, generator: torch.Generator) -> Tensor:
    """Latents to decode from draws of a fitted prior: (n, prior_dim) -> (n, d)."""
    if isinstance(model, PartialPrior):
        return model.complete_latents(z, generator)
    return project(model, z)


def project(model: LatentModel, z: Tensor) -> Tensor:
    """The nearest latents in the region where the model has any: (..., d) -> (..., d)."""
    return model.project(z) if isinstance(model, Bounded) else z


def geometric_decoder(model: LatentModel) -> nn.Module:
    """The map whose geometry is studied, as a frozen copy in evaluation mode.

    Latents (n, d) to images in [-1, 1], (n, ...), or to their means and variances. Raises
    ValueError where latents are bits.
    """
    if isinstance(model, GeometricDecoder):
        return model.geometric_decoder()
    if model.latent_kind != "real":
        raise ValueError(
            f"{type(model).__name__}: the geometry of latents needs real ones; these are bits"
        )
    return SignedDecoder(copy.deepcopy(model)).eval().requires_grad_(False)


class SignedDecoder(nn.Module):
    """A model's decoded images, in [-1, 1]: (n, d) -> (n, c, h, w)."""

    def __init__(self, model: LatentModel):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return 2 * self.model.decode(z) - 1


def alternating_steps_of(model: LatentModel) -> tuple[AlternatingStep, ...]:
    """The alternating steps of a training step; () where one step optimises all weights."""
    return model.alternating_steps if isinstance(model, Alternating) else ()
