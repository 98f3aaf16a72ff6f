"""Priors of real latents by name, with what it takes to build and fit them."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from fastlatent.jobs.naming import require, require_word
from fastlatent.priors.base import Prior
from fastlatent.priors.hierarchical import Hierarchical, Ladder
from fastlatent.priors.inner import ScaleKind
from fastlatent.priors.mixture import GaussianMixture
from fastlatent.priors.mixture_fit import Covariance
from fastlatent.priors.normal import Normal
from fastlatent.priors.two_stage import TwoStage
from fastlatent.priors.vamp import VampPrior

PriorKind = Literal["normal", "gmm", "vamp", "hierarchical", "ladder"]


@dataclass(frozen=True)
class PriorSettings:
    """A prior to be fitted to latents after training."""

    OPTIONS: ClassVar = ""

    prior: PriorKind = "gmm"
    """normal: mean and covariance; gmm: a Gaussian mixture; vamp: posteriors of learned
    pseudo-images; hierarchical: a second VAE on the latents; ladder: a second VAE with a mixture
    over its own latents."""
    covariance: Covariance = "full"
    """Form of the covariance: of normal, and of each component of gmm."""
    components: int = 50
    """Components of the mixture, at most (gmm, ladder); or pseudo-images (vamp)."""
    code_dim: int = 2
    """Latents of the second VAE (hierarchical, ladder)."""
    width: int = 512
    """Units in each hidden layer of the second VAE."""
    depth: int = 5
    """Hidden layers of its encoder, and of its decoder."""
    scale: ScaleKind = "profile"
    """Standard deviation of p(z | t), the latents given the second VAE's: profile, the likeliest
    for each batch; learned, by gradient; fixed, 0.1."""
    steps: int | None = None
    """Training steps (vamp, hierarchical, ladder); default: 4000 for vamp, 2000 for the others."""

    def __post_init__(self) -> None:
        require_word(self, "prior", get_args(PriorKind))
        for name in ("components", "code_dim", "width", "depth", "steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")

    @property
    def trains(self) -> int:
        """Steps of training by gradients; 0: none."""
        if self.prior in ("normal", "gmm"):
            return 0
        default = VampPrior.TRAINING if self.prior == "vamp" else TwoStage()
        return self.steps or default.steps

    def build(self, dim: int, image_shape: tuple[int, int, int]) -> Prior:
        """The prior over `dim` latents, unfitted; `image_shape` is that of pseudo-images."""
        if self.prior == "normal":
            return Normal(dim, self.covariance)
        if self.prior == "gmm":
            return GaussianMixture(dim, self.components, self.covariance)
        if self.prior == "vamp":
            training = replace(VampPrior.TRAINING, steps=self.trains)
            return VampPrior(dim, image_shape, self.components, two_stage=training)
        inner: dict[str, Any] = {
            "width": self.width,
            "depth": self.depth,
            "scale": self.scale,
            "two_stage": TwoStage(steps=self.trains),
        }
        if self.prior == "hierarchical":
            return Hierarchical(dim, self.code_dim, **inner)
        return Ladder(dim, self.code_dim, self.components, **inner)
