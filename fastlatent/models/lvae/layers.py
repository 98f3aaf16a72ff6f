"""The stochastic layers of the top-down pass, and what one pass through them leaves behind."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlatent.models.lvae.config import LVAEConfig
from fastlatent.nn import Merge, Resampled, at_least_float32


class Normal(NamedTuple):
    """Independent normal distributions of a layer's latents."""

    mean: Tensor  # (n, c, h, w)
    log_variance: Tensor  # (n, c, h, w)

    @staticmethod
    def of(parameters: Tensor, bound: float | None = None) -> "Normal":
        """From (n, 2 c, h, w): means first, in float32 or better; log-variances within +-bound."""
        mean, log_variance = at_least_float32(parameters).chunk(2, 1)
        if bound is not None:
            log_variance = bound * (log_variance / bound).tanh()
        return Normal(mean, log_variance)

    def constant(self) -> "Normal":
        """The distributions of the first batch element for all."""
        return Normal(*(_constant(value) for value in self))


@dataclass(frozen=True)
class LayerPass:
    """One stochastic layer's part in a pass; elementwise values are (n, c, h, w), in nats."""

    z: Tensor  # (n, c, h, w)
    noise: Tensor  # (n, c, h, w): z = mean of q + deviation of q * noise
    q: Normal  # what z is drawn from: the posterior, or in generation the prior
    p: Normal  # the prior given the layers above

    def log_q(self) -> Tensor:
        """log q(z), elementwise."""
        return -0.5 * (self.noise.square() + self.q.log_variance + math.log(2 * math.pi))

    def log_p(self) -> Tensor:
        """log p(z | layers above), elementwise."""
        return -0.5 * (self._score().square() + self.p.log_variance + math.log(2 * math.pi))

    def kl_sampled(self) -> Tensor:
        """log q(z) - log p(z), elementwise; exactly 0 where q equals p."""
        squares = self._score().square() - self.noise.square()
        return 0.5 * (squares + self.p.log_variance - self.q.log_variance)

    def kl_analytical(self) -> Tensor:
        """KL(q || p), elementwise."""
        q, p = self.q, self.p
        difference = q.log_variance - p.log_variance
        distance = (q.mean - p.mean).square() * (-p.log_variance).exp()
        return 0.5 * (difference.exp() + distance - 1 - difference)

    def _score(self) -> Tensor:
        """(z - mean of p) / deviation of p, without the cancellation in z - mean."""
        q, p = self.q, self.p
        shift = (q.mean - p.mean) * (-p.log_variance / 2).exp()
        return shift + self.noise * ((q.log_variance - p.log_variance) / 2).exp()


@dataclass(frozen=True)
class LadderPass:
    """A top-down pass: its layers, the bottom one first, and the features of the likelihood.

    Values of n images and L layers; each is computed when asked for.
    """

    layers: Sequence[LayerPass]
    features: Tensor  # (n, f, h, w)

    @property
    def z(self) -> list[Tensor]:
        """Latents of each layer (n, c, h, w)."""
        return [layer.z for layer in self.layers]

    @property
    def latents(self) -> Tensor:
        """All latents (n, d)."""
        return torch.cat([z.flatten(1) for z in self.z], 1)

    @property
    def log_q(self) -> Tensor:
        """log q(z) of each layer given those above: (n, L)."""
        return _by_layer([layer.log_q() for layer in self.layers])

    @property
    def log_p(self) -> Tensor:
        """log p(z) of each layer given those above: (n, L)."""
        return _by_layer([layer.log_p() for layer in self.layers])

    @property
    def kl_sampled(self) -> Tensor:
        """log q(z) - log p(z) of each layer: (n, L)."""
        return _by_layer([layer.kl_sampled() for layer in self.layers])

    @property
    def kl_analytical(self) -> Tensor:
        """KL(q || p) of each layer given those above: (n, L)."""
        return _by_layer([layer.kl_analytical() for layer in self.layers])

    @property
    def kl_map(self) -> list[Tensor]:
        """KL(q || p) of each layer, summed over channels only: (n, h, w) each."""
        return [layer.kl_analytical().sum(1) for layer in self.layers]


class TopDownLayer(nn.Module):
    """A stochastic layer and the residual blocks below it.

    The prior is learned at the top and a function of the layer above elsewhere; the posterior sees
    the bottom-up features as well.
    """

    def __init__(self, config: LVAEConfig, index: int):
        super().__init__()
        channels, height, width = config.layer_shapes[index]
        filters, style = config.filters, config.style
        self.bound = config.log_variance_bound
        self.top = index == len(config.zdims) - 1
        if self.top:
            self.top_prior = nn.Parameter(
                torch.zeros(1, 2 * channels, height, width), config.learn_top_prior
            )
        else:
            self.prior = nn.Conv2d(filters, 2 * channels, 3, padding=1)
            self.merge = Merge(style, config.merge)
        self.posterior = nn.Conv2d(filters, 2 * channels, 3, padding=1)
        self.expand = nn.Conv2d(channels, filters, 3, padding=1)
        self.skip = Merge(style, "residual") if config.skip and not self.top else None
        self.blocks = nn.ModuleList(
            Resampled(style, config.gated, "up" if number < config.downsample[index] else None)
            for number in range(config.blocks)
        )

    def forward(
        self,
        n: int,  # batch size
        above: Tensor | None,  # (n, f, h, w) from the layer above; None at the top
        bottom_up: Tensor | None,  # (n, f, h, w); None in generation
        noise: Tensor | None = None,  # (n, c, h, w) standard normal; None: z is the mean
        z: Tensor | None = None,  # (n, c, h, w) latents to take instead of drawing them
        constant: bool = False,  # the latents of the first batch element for all
        masks: Iterator[Tensor] | None = None,  # of the channel dropout
    ) -> tuple[LayerPass, Tensor]:  # and the features (n, f, h', w') for the layer below
        if above is None:
            p = Normal.of(self.top_prior.expand(n, -1, -1, -1), self.bound)
        else:
            p = Normal.of(self.prior(above), self.bound)
        if bottom_up is None:
            q = p
        else:
            seen = bottom_up if above is None else self.merge(bottom_up, above, masks)
            q = Normal.of(self.posterior(seen), self.bound)
        if z is not None:
            noise = (z - q.mean) * (-q.log_variance / 2).exp()
        elif noise is None:
            z, noise = q.mean, torch.zeros_like(q.mean)
        else:
            z = q.mean + (q.log_variance / 2).exp() * noise
        if constant:
            z, noise, q, p = _constant(z), _constant(noise), q.constant(), p.constant()

        y = self.expand(z)
        if self.skip is not None:
            y = self.skip(y, above, masks)
        for block in self.blocks:
            y = block(y, masks)
        return LayerPass(z, noise, q, p), y


def _constant(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def _by_layer(values: list[Tensor]) -> Tensor:
    return torch.stack([value.flatten(1).sum(1) for value in values], 1)
