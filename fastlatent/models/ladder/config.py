"""What can be set about LaDDer; the defaults are the released model of MNIST, put right."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

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
        value = getattr(config, name)
        _require(config, name, value in get_args(words), "one of " + ", ".join(get_args(words)))


def _require(config: Any, name: str, good: bool, expectation: str) -> None:
    if not good:
        form = type(config).__name__
        raise ValueError(f"{form}: {name} must be {expectation}; got {getattr(config, name)!r}")


@dataclass(frozen=True)
class PriorConfig:
    """The prior of the latents z, and what it takes to build it."""

    kind: PriorKind = "ladder"
    """normal: N(0, I); gmm: a mixture fitted to z; vamp: posteriors of learned pseudo-images;
    hierarchical: a second VAE on z; ladder: that with a mixture over its latents t."""
    dim: int = 2
    """Number of inner latents t (hierarchical, ladder)."""
    width: int = 512
    """Units of the inner VAE's hidden layers."""
    layers: int = 5
    """Hidden layers of the inner encoder, and of the inner decoder."""
    activation: Activation = "leaky_relu"
    """Nonlinearity of the inner VAE."""
    components: int = 50
    """Components of the mixture (gmm, ladder) or pseudo-images (vamp)."""
    scale: ScaleKind = "profile"
    """Standard deviation of p(z | t): profile: the likeliest for each batch; learned: by gradient,
    from the likeliest when the prior takes over; fixed."""
    start_scale: float = 0.1
    """Where a learned scale begins, and the value of a fixed one."""
    least_scale: float = 0.05
    """What that standard deviation is at least."""
    most_scale: float | None = None
    """What it is at most; default: no bound (learned: 100 times where it begins)."""
    predicted_std: bool = False
    """Give p(z | t) a deviation for each latent, a function of t, in place of that one."""
    draws: int = 1
    """Draws of each image's latents at which training measures a mixture."""
    evaluation_draws: int = 100
    """Draws of each image's latents at which evaluation measures a mixture."""
    free_pseudo_images: bool = False
    """Leave the pseudo-images of vamp unbounded, as in the published program; default: in [0, 1].
    """
    ridge: float = 0.0
    """Added to the variances of the mixture (gmm); the published program has 0.01."""
    original_fit: bool = False
    """Fit mixtures as the published program: from few latents, each fit from the last one."""

    def __post_init__(self) -> None:
        _check_words(self, kind=PriorKind, activation=Activation, scale=ScaleKind)
        for name in ("dim", "width", "layers", "components", "draws", "evaluation_draws"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("start_scale", "least_scale"):
            _require(self, name, 0 < getattr(self, name) < math.inf, "positive")
        most = self.most_scale
        good = most is None or self.least_scale < most < math.inf
        _require(self, "most_scale", good, f"more than least_scale, {self.least_scale}")
        _require(self, "ridge", 0 <= self.ridge < math.inf, "at least 0")


@dataclass(frozen=True)
class PriorSchedule:
    """When the prior learns and rules, and how fast."""

    warmup_epochs: int = 5
    """Epochs in which the model trains under N(0, I) in place of its prior."""
    prior_from: int | None = None
    """Epochs after which the prior begins to learn; default: one less than --warmup-epochs, so that
    the last epoch under N(0, I) already trains it."""
    refit_every: int = 1
    """Epochs from one fit of the mixture to the next."""
    refit_samples: int = 20_000
    """Latents that it is fitted to, one draw for each training image."""
    alternate: bool = False
    """Move model, image scale, prior and inner scale one after the other on each batch, each by a
    pass of its own, as the published program does."""
    train_model: bool = True
    """Whether encoder, decoder and image scale learn."""
    train_prior: bool = True
    """Whether the prior learns and its mixture is fitted."""
    mask_from: int | None = None
    """Epochs after which collapsed latents, whose mean posterior deviation over the training images
    is above --mask-above, get a factor N(0, 1) in place of the inner VAE's; default: never."""
    mask_above: float = 0.9
    """The deviation that makes a latent a collapsed one."""
    scale_rate: float = 5 / 3
    """Learning rate of a trained image scale, as a factor of --lr."""
    prior_rate: float = 1.0
    """Learning rate of the prior, as a factor of --lr."""
    prior_scale_rate: float = 2 / 3
    """Learning rate of a trained inner scale, as a factor of --lr."""
    prior_decay: float = 1.0
    """Factor of the last two after each epoch, in place of --lr-decay; 1: they are constant."""

    def __post_init__(self) -> None:
        for name in ("refit_every", "refit_samples"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "warmup_epochs", self.warmup_epochs >= 0, "at least 0")
        first = self.prior_from
        good = first is None or 0 <= first <= self.warmup_epochs
        _require(self, "prior_from", good, f"from 0 to warmup_epochs, {self.warmup_epochs}")
        good = self.mask_from is None or self.mask_from >= self.warmup_epochs
        _require(self, "mask_from", good, f"at least warmup_epochs, {self.warmup_epochs}")
        for name in ("mask_above", "scale_rate", "prior_rate", "prior_scale_rate", "prior_decay"):
            _require(self, name, 0 < getattr(self, name) < math.inf, "positive")
        _require(self, "train_prior", self.train_model or self.train_prior, "on without the model")

    @property
    def learns_after(self) -> int:
        """Epochs after which the prior begins to learn."""
        return max(0, self.warmup_epochs - 1) if self.prior_from is None else self.prior_from


@dataclass(frozen=True)
class LaDDerConfig:
    """What it takes to build the model."""

    family: Literal["ladder"] = "ladder"
    """Kind of model; the preset has chosen it."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of the images."""
    architecture: Architecture = "digit"
    """Published networks: digit and fashion are for 28x28 pixels, celeba for 128x128."""
    width: int = 256
    """Channels of their widest layers."""
    dim: int = 16
    """Number of latents z."""
    posterior_std: PosteriorStd = "softplus"
    """What makes deviations of posteriors positive; relu, as published, leaves some stuck."""
    output: Output = "relu"
    """What the decoder ends in: relu as published for digit and fashion, linear for celeba, or
    sigmoid, which keeps images in [0, 1]."""
    image_scale: ImageScale = "profile"
    """Scale of the Laplace distribution of the pixels: profile: the mean absolute error of the
    batch; max_floor: at least that, otherwise trained, as published; fixed."""
    start_scale: float = 0.5
    """Where a trained scale begins, and the value of a fixed one."""
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
        _require(self, "image_shape", good, f"(channels, {side}, {side}) for {self.architecture}")
        good = self.width >= step and self.width % step == 0
        _require(self, "width", good, f"a multiple of {step} for {self.architecture}")
        _require(self, "dim", self.dim >= 1, "at least 1")
        _require(self, "start_scale", 0 < self.start_scale < math.inf, "positive")
        prior, samples = self.prior, self.schedule.refit_samples
        if prior.kind in MIXTURES and samples < prior.components:
            raise ValueError(
                "LaDDerConfig: schedule.refit_samples must be at least prior.components, "
                f"{prior.components}; got {samples}"
            )
