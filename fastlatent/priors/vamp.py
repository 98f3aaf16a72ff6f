"""VampPrior: the mean posterior of pseudo-images that are learned.

J. M. Tomczak and M. Welling, "VAE with a VampPrior", AISTATS 2018: p(z) = 1/K sum_k q(z|u_k).
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastlatent.nn import at_least_float32
from fastlatent.priors.base import Density, FitReport, Prior, check_count, mixture_spread, normal
from fastlatent.priors.mixture_density import log_diagonal_mixture
from fastlatent.priors.two_stage import TwoStage, train

Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]

_INSIDE = 0.02  # images begin so far from 0 and 1, where the squashing has a slope


class VampPrior(Prior):
    """Mixture of the posteriors of K pseudo-images u_k, all of weight 1/K.

    The encoder, images (k, c, h, w) to mean and deviation (k, dim), is bound and no child, so the
    model that has both owns it. Without gradients the components are kept between calls. They are
    computed anew when u or the encoder changes, and when the prior's mode is set, as before each
    pass of evaluation.

    Pseudo-images are squashed into [0, 1] by a sigmoid; with `free` they are not, as in the LaDDer
    program.
    """

    TRAINING = TwoStage(rate=1e-2, steps=4000)

    def __init__(
        self,
        dim: int,
        image_shape: tuple[int, int, int],
        components: int = 50,
        *,
        free: bool = False,
        two_stage: TwoStage | None = None,  # how `fit` trains
    ) -> None:
        super().__init__(dim)
        if components < 1:
            raise ValueError(f"VampPrior: components must be at least 1; got {components}")
        self.components = components
        self.image_shape = tuple(image_shape)
        self.free = free
        self.two_stage = two_stage or self.TRAINING
        self.raw = nn.Parameter(torch.randn(components, *image_shape))
        # In a tuple, where Module does not find it and make it a child.
        self._bound: tuple[Encoder] | None = None
        self._kept: tuple[object, tuple[Tensor, Tensor]] | None = None  # key, means and deviations

    @property
    def density(self) -> Density:  # type: ignore[override]
        return "exact"

    def bind(self, encoder: Encoder) -> Self:
        self._bound = (encoder,)
        self._kept = None
        return self

    def train(self, mode: bool = True) -> Self:
        """As of any module; forgets the components.

        What other ranks broadcast into u or the encoder leaves no trace to know it by.
        """
        self._kept = None
        return super().train(mode)

    @property
    def least_latents(self) -> int:
        return max(2, self.components)

    @property
    def images(self) -> Tensor:
        """The pseudo-images (K, c, h, w)."""
        return self.raw if self.free else self.raw.sigmoid()

    def start_from(self, images: Tensor) -> Self:
        """Begin at K given images (K, c, h, w) in [0, 1]."""
        if images.shape != self.raw.shape:
            raise ValueError(
                f"VampPrior.start_from: images must have shape {tuple(self.raw.shape)}; "
                f"got {tuple(images.shape)}"
            )
        start = images.to(self.raw)
        with torch.no_grad():
            self.raw.copy_(start if self.free else start.clamp(_INSIDE, 1 - _INSIDE).logit())
        return self

    def mixture(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (K, dim) of the components, with gradients where those are on."""
        encoder = self._encoder()
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._depends(encoder)):
            return self._encode(encoder)
        key = tuple((id(p), p._version) for p in self._depends(encoder))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._encode(encoder)
        return self._kept[1]

    def log_prob(
        self, z: Tensor, n: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        self._check_points("log_prob", z)
        means, stds = self.mixture()
        weights = torch.full_like(means[:, 0], -math.log(self.components))
        return log_diagonal_mixture(z, weights, means, stds)

    def sample(
        self, n: int, *, noise: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        check_count(self, "sample", n, least=0)
        with torch.no_grad():
            means, stds = self.mixture()
        device = means.device if generator is None else generator.device
        which = torch.randint(self.components, (n,), generator=generator, device=device)
        which = which.to(means.device)
        return means[which] + stds[which] * normal((n, self.dim), means, generator)

    @torch.no_grad()
    def spread(self) -> Tensor:
        means, stds = self.mixture()
        weights = torch.full_like(means[:, 0], 1 / self.components)
        return mixture_spread(weights, means, stds.square())

    def fit(self, z: Tensor, *, seed: int = 0) -> Self:
        """Move the pseudo-images by gradients; the encoder stays as it is."""
        z = self._check_latents(z)
        held = [p for p in self._depends(self._encoder()) if p.requires_grad and p is not self.raw]
        for parameter in held:
            parameter.requires_grad_(False)
        try:
            self.report = train(self, z, self.two_stage, seed, _nothing, _nothing)
        finally:
            for parameter in held:
                parameter.requires_grad_(True)
        return self

    def _encoder(self) -> Encoder:
        if self._bound is None:
            raise ValueError("VampPrior: bind(encoder) must be called first")
        return self._bound[0]

    def _depends(self, encoder: Encoder) -> list[Tensor]:
        """The tensors that the components are a function of, as far as they can be known."""
        module = _module_of(encoder)
        return [self.raw, *(() if module is None else (*module.parameters(), *module.buffers()))]

    def _encode(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        module = _module_of(encoder)
        training = [] if module is None else [part for part in module.modules() if part.training]
        # Batch statistics are those of the images, not of K pseudo-images.
        for part in training:
            part.training = False
        try:
            mean, std = encoder(self.images)
        finally:
            for part in training:
                part.training = True
        if tuple(mean.shape) != (self.components, self.dim):
            raise ValueError(
                f"VampPrior: the encoder must give means of shape ({self.components}, {self.dim}); "
                f"got {tuple(mean.shape)}"
            )
        return at_least_float32(mean), at_least_float32(std)


def _module_of(encoder: Any) -> nn.Module | None:
    """The module behind an encoder: itself, or whose method it is."""
    owner = getattr(encoder, "__self__", encoder)
    return owner if isinstance(owner, nn.Module) else None


def _nothing(z: Tensor, seed: int) -> FitReport | None:
    return None
