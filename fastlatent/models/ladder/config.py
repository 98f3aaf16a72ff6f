"""What can be set about LaDDer; the defaults are the released model of MNIST, put right."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from fastlatent.jobs.naming import name_of, require, require_word
from fastlatent.priors import PriorKind
from fastlatent.priors.inner import Activation, ScaleKind

Architecture = Literal["digit", "fashion", "celeba"]
PosteriorStd = Literal["softplus", "relu"]
Output = Literal["relu", "linear", "sigmoid"]
ImageScale = Literal["profile", "max_floor", "fixed"]

SIDES: dict[Architecture, int] = {"digit": 28, "fashion": 28, "celeba": 128}
WIDTHS: dict[Architecture, int] = {"digit": 64, "fashion": 4, "celeba": 4}  # and their multiples
INNER: tuple[PriorKind, ...] = ("hierarchical", "ladder")  # a second VAE on the latents
MIXTURES: tuple[PriorKind, ...] = ("gmm", "ladder")  # with a mixture that is fitted anew


def _check_words(config: Any, **choices: Any) -> None:
    for name, words in choices.items():
        require_word(config, name, get_args(words))


@dataclass(frozen=True)
class PriorConfig:
    """The prior of the latents z, and what it takes to build it."""

    OPTIONS: ClassVar = "model.prior."

    kind: PriorKind = "ladder"
    """normal: N(0, I); gmm: a Gaussian mixture over z; vamp: posteriors of learned pseudo-images;
    hierarchical: a second VAE on z; ladder: a second VAE with a mixture over its latents t."""
    dim: int = 2
    """Number of inner latents t (hierarchical, ladder)."""
    width: int = 512
    """Units in each hidden layer of the inner VAE."""
    layers: int = 5
    """Hidden layers of the inner encoder, and of the inner decoder."""
    activation: Activation = "leaky_relu"
    """Activation function of the inner VAE."""
    components: int = 50
    """Components of the mixture (gmm, ladder), or pseudo-images (vamp)."""
    scale: ScaleKind = "profile"
    """Standard deviation of p(z | t): profile, the likeliest for each batch; learned, by gradient,
    from the likeliest at the first use of the prior; fixed."""
    start_scale: float = 0.1
    """Initial value of a learned scale, or value of a fixed one."""
    least_scale: float = 0.05
    """Lower bound of that standard deviation."""
    most_scale: float | None = None
    """Upper bound of that standard deviation; default: none, or 100 times the initial value if
    learned."""
    predicted_std: bool = False
    """Let p(z | t) have a standard deviation for each latent, as a function of t, in place of one
    scale."""
    draws: int = 1
    """Draws of each image's latents on which training evaluates a mixture."""
    evaluation_draws: int = 100
    """Draws of each image's latents on which evaluation measures a mixture."""
    free_pseudo_images: bool = False
    """Leave the pseudo-images of vamp unbounded, as in the published program; default: bounded to
    [0, 1]."""
    ridge: float = 0.0
    """Number added to the variances of the mixture (gmm). The published program has 0.01."""
    original_fit: bool = False
    """Fit mixtures as the published program does: to few latents, each fit starting from the last.
    """

    def __post_init__(self) -> None:
        _check_words(self, kind=PriorKind, activation=Activation, scale=ScaleKind)
        for name in ("dim", "width", "layers", "components", "draws", "evaluation_draws"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("start_scale", "least_scale"):
            require(0 < getattr(self, name) < math.inf, self, name, "positive")
        most = self.most_scale
        good = most is None or self.least_scale < most < math.inf
        require(
            good, self, "most_scale", f"more than {name_of(self, 'least_scale', self.least_scale)}"
        )
        require(0 <= self.ridge < math.inf, self, "ridge", "at least 0")


@dataclass(frozen=True)
class PriorSchedule:
    """When the prior learns, when it is in use, and how fast it learns."""

    OPTIONS: ClassVar = "model.schedule."

    warmup_epochs: int = 5
    """Epochs in which the model trains under N(0, I), before the learned prior is in use."""
    prior_from: int | None = None
    """Epochs after which the prior begins to learn; default: one less than
    --model.schedule.warmup-epochs, so that it learns in the last epoch under N(0, I)."""
    refit_every: int = 1
    """Epochs from one fit of the mixture to the next."""
    refit_samples: int = 20_000
    """Latents in such a fit, one draw for each training image."""
    alternate: bool = False
    """Optimise model, image scale, prior and inner scale by alternating steps on each batch, as the
    published program does; default: by one pass."""
    train_model: bool = True
    """Train encoder, decoder and image scale; False: they are frozen."""
    train_prior: bool = True
    """Train the prior and fit its mixture; False: it is frozen."""
    mask_from: int | None = None
    """Epochs after which collapsed latents get a factor N(0, 1) in place of the inner VAE's;
    default: never."""
    mask_above: float = 0.9
    """Mean posterior deviation over the training images above which a latent counts as collapsed.
    """
    scale_rate: float = 5 / 3
    """Learning rate of a learned image scale, as a factor of --lr."""
    prior_rate: float = 1.0
    """Learning rate of the prior, as a factor of --lr."""
    prior_scale_rate: float = 2 / 3
    """Learning rate of a learned inner scale, as a factor of --lr."""
    prior_decay: float = 1.0
    """Factor of the prior's and the inner scale's learning rates after each epoch, in place of
    --lr-decay; 1: constant rates."""

    def __post_init__(self) -> None:
        for name in ("refit_every", "refit_samples"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.warmup_epochs >= 0, self, "warmup_epochs", "at least 0")
        warmup = name_of(self, "warmup_epochs", self.warmup_epochs)
        first = self.prior_from
        good = first is None or 0 <= first <= self.warmup_epochs
        require(good, self, "prior_from", f"from 0 to {warmup}")
        good = self.mask_from is None or self.mask_from >= self.warmup_epochs
        require(good, self, "mask_from", f"at least {warmup}")
        for name in ("mask_above", "scale_rate", "prior_rate", "prior_scale_rate", "prior_decay"):
            require(0 < getattr(self, name) < math.inf, self, name, "positive")
        require(self.train_model or self.train_prior, self, "train_prior", "on without the model")

    @property
    def learns_after(self) -> int:
        """Epochs after which the prior begins to learn."""
        return max(0, self.warmup_epochs - 1) if self.prior_from is None else self.prior_from


@dataclass(frozen=True)
class LaDDerConfig:
    """What it takes to build the model."""

    OPTIONS: ClassVar = "model."

    family: Literal["ladder"] = "ladder"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of the images."""
    architecture: Architecture = "digit"
    """Published networks: digit and fashion for 28x28 pixels, celeba for 128x128."""
    width: int = 256
    """Channels of the widest layers."""
    dim: int = 16
    """Number of latents z."""
    posterior_std: PosteriorStd = "softplus"
    """Function that makes posterior deviations positive. With relu, as published, some get stuck.
    """
    output: Output = "relu"
    """Last activation of the decoder: relu, as published for digit and fashion; linear, as for
    celeba; sigmoid, which keeps images in [0, 1]."""
    image_scale: ImageScale = "profile"
    """Scale of the Laplace distribution of the pixels: profile, the mean absolute error of the
    batch; max_floor, learned with that as its floor, as published; fixed."""
    start_scale: float = 0.5
    """Initial value of a learned scale, or value of a fixed one."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    schedule: PriorSchedule = field(default_factory=PriorSchedule)

    def with_prior(self, kind: PriorKind) -> "LaDDerConfig":
        """The same settings with a prior of that kind."""
        return replace(self, prior=replace(self.prior, kind=kind))

    def __post_init__(self) -> None:
        _check_words(
            self,
            architecture=Architecture,
            posterior_std=PosteriorStd,
            output=Output,
            image_scale=ImageScale,
        )
        side, step = SIDES[self.architecture], WIDTHS[self.architecture]
        good = len(self.image_shape) == 3 and self.image_shape[0] >= 1
        good = good and tuple(self.image_shape[1:]) == (side, side)
        require(good, self, "image_shape", f"(channels, {side}, {side}) for {self.architecture}")
        good = self.width >= step and self.width % step == 0
        require(good, self, "width", f"a multiple of {step} for {self.architecture}")
        require(self.dim >= 1, self, "dim", "at least 1")
        require(0 < self.start_scale < math.inf, self, "start_scale", "positive")
        prior = self.prior
        good = prior.kind not in MIXTURES or self.schedule.refit_samples >= prior.components
        components = name_of(self, "prior.components", prior.components)
        require(good, self, "schedule.refit_samples", f"at least {components}")
