"""Priors that are themselves latent-variable models: an inner VAE on the latents.

    t ~ p(t), z = g(t) + tau eps;   q(t|z) = N(m(z), diag v(z)^2)

S. Lin and R. Clark, "LaDDer: Latent Data Distribution Modelling with a Generative Prior", BMVC
2020, arXiv 2009.00088. p(t) is any prior: N(0, I) gives their "hierarchical" prior, a Gaussian
mixture the ladder, another such prior a longer ladder.
"""

import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.nn import at_least_float32
from fastlatent.priors.base import Density, FitReport, PathSpace, Prior, check_count, normal
from fastlatent.priors.gaussian import entropy, gaussian_log_prob
from fastlatent.priors.inner import Activation, Scale, ScaleKind, perceptron
from fastlatent.priors.mixture import GaussianMixture
from fastlatent.priors.mixture_fit import MixtureFit
from fastlatent.priors.normal import Normal
from fastlatent.priors.two_stage import SETTLED, TwoStage, train

PART = 1 << 13  # latents at a time
_LEAST = 1e-3  # deviation of q(t|z)


class Bound(NamedTuple):
    """The three parts of the lower bound on log p(z), each (...) in nats; the bound is their sum.

    The entropy is in closed form; the other two are at one draw of t, unless p(t) has a form.
    """

    reconstruction: Tensor  # log p(z|t)
    entropy: Tensor  # of q(t|z)
    prior: Tensor  # E[log p(t)] under q(t|z)

    @property
    def total(self) -> Tensor:
        return self.reconstruction + self.entropy + self.prior


class Hierarchical(Prior):
    """p(z) = int p(t) N(z; c + u g(t), (u tau)^2) dt, an inner VAE of two or three perceptrons.

    `scale` is tau: "profile", the value of highest likelihood of each training batch, whose
    running mean serves in evaluation; "learned" inside the bounds; "fixed". `predicted_std` gives
    p(z|t) a deviation for each dimension, another perceptron of t, in place of tau.

    Centre c and units u, for each dimension, are 0 and 1 until `fit` takes the latents' mean and
    deviation: tau and its bounds are parts of that, and from then on each dimension has its own,
    but for a fixed one.

    Dimensions in `masked` have the factor N(0, 1) in p(z|t): those that the posterior does not
    use (see `mask_unused`).
    """

    masked: Tensor  # (dim,) bool
    centre: Tensor  # (dim,)
    units: Tensor  # (dim,)

    def __init__(
        self,
        dim: int,
        code: Prior | int = 2,  # p(t), or the dimension of t for N(0, I)
        *,
        width: int = 512,
        depth: int = 5,
        activation: Activation = "leaky_relu",
        scale: ScaleKind = "profile",
        start_scale: float = 0.1,
        scale_bounds: tuple[float, float] = (0.05, math.inf),  # (0.05, 0.1) in the original
        predicted_std: bool = False,
        std_head: Literal["softplus", "relu"] = "softplus",  # "relu": the original's
        two_stage: TwoStage | None = None,  # how `fit` trains
    ) -> None:
        super().__init__(dim)
        if width < 1 or depth < 1:
            raise ValueError(
                f"{type(self).__name__}: width and depth must be at least 1; got {width}, {depth}"
            )
        if std_head not in ("softplus", "relu"):
            raise ValueError(
                f"{type(self).__name__}: std_head must be 'softplus' or 'relu'; got {std_head!r}"
            )
        self.code = Normal(code) if isinstance(code, int) else code
        if self.code.support != "real" or self.code.density == "none":
            raise ValueError(
                f"{type(self).__name__}: code must be a prior of real latents with a density; "
                f"got {type(self.code).__name__}"
            )
        self.std_head = std_head
        self.two_stage = two_stage or TwoStage()
        self.encoder = perceptron(dim, width, depth, activation)
        self.mean_head = perceptron(width, width, 0, activation, self.code.dim)
        self.deviation_head = perceptron(width, width, 0, activation, self.code.dim)
        self.decoder = perceptron(self.code.dim, width, depth, activation, dim)
        self.deviation_decoder = None
        if predicted_std:
            self.deviation_decoder = perceptron(self.code.dim, width, depth, activation, dim)
        self.scale = Scale(scale, start_scale, scale_bounds)
        self.register_buffer("masked", torch.zeros(dim, dtype=torch.bool))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("units", torch.ones(dim))

    @property
    def density(self) -> Density:  # type: ignore[override]
        return "lower_bound"

    @property
    def least_latents(self) -> int:
        return self.code.least_latents

    def posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean m(z) and deviation v(z) of q(t|z): (..., dim) -> (..., code.dim) each."""
        self._check_points("posterior", z)
        white = (z - self.centre.to(z)) / self.units.to(z)
        hidden = self.encoder(white.to(_dtype(self.mean_head)))
        raw = at_least_float32(self.deviation_head(hidden))
        positive = F.softplus(raw) if self.std_head == "softplus" else raw.relu()
        return at_least_float32(self.mean_head(hidden)), positive + _LEAST

    def conditional(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of p(z|t): (..., code.dim) -> (..., dim) each."""
        mean = at_least_float32(self.decoder(t.to(_dtype(self.decoder))))
        if self.deviation_decoder is None:
            std = self.scale.value.to(mean).expand_as(mean)
        else:
            raw = at_least_float32(self.deviation_decoder(t.to(_dtype(self.decoder))))
            std = self.scale.bounds[0] + F.softplus(raw)
        units = self.units.to(mean)
        mean, std = self.centre.to(mean) + units * mean, units * std
        return mean.masked_fill(self.masked, 0), std.masked_fill(self.masked, 1)

    def log_prob(
        self, z: Tensor, n: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-mean of n importance weights p(z|t) p(t) / q(t|z), t ~ q(t|z)."""
        self._check_points("log_prob", z)
        check_count(self, "log_prob", n)
        z = at_least_float32(z)
        mean, std = self.posterior(z)
        t = mean + std * normal((n, *mean.shape), mean, generator)
        return self._log_mean_weight(z, mean, std, t, self.code.log_prob(t, generator=generator))

    def steady_log_prob(self, z: Tensor, n: int = 1, *, seed: int = 0) -> Tensor:
        self._check_points("steady_log_prob", z)
        check_count(self, "steady_log_prob", n)
        z = at_least_float32(z)
        mean, std = self.posterior(z)
        stream = torch.Generator(mean.device).manual_seed(seed)
        shape = (n, *[1] * (mean.dim() - 1), mean.shape[-1])
        t = mean + std * normal(shape, mean, stream)
        return self._log_mean_weight(z, mean, std, t, self.code.steady_log_prob(t, seed=seed + 1))

    def bound(self, z: Tensor, n: int = 1, *, generator: torch.Generator | None = None) -> Bound:
        """The lower bound for training, at one draw of t; n fresh draws for E[log p(t)]."""
        self._check_points("bound", z)
        z = at_least_float32(z)
        mean, std = self.posterior(z)
        t = mean + std * normal(tuple(mean.shape), mean, generator)
        prior = self.code.expected_log_prob(mean, std, t, n, generator=generator)
        return Bound(self._likelihood(z, t), entropy(std), prior)

    def expected_log_prob(
        self,
        mean: Tensor,
        std: Tensor,
        z: Tensor | None = None,
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The total of `bound` at z, or at a draw of N(mean, std^2) where none is given."""
        self._check_points("expected_log_prob", mean)
        if z is None:
            z = mean + std * normal(tuple(mean.shape), mean, generator)
        return self.bound(z, n, generator=generator).total

    @torch.no_grad()
    def sample(
        self, n: int, *, noise: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of p(z); without `noise` the means g(t), which are none."""
        check_count(self, "sample", n, least=0)
        mean, std = self.conditional(self.code.sample(n, generator=generator))
        return mean + std * normal((n, self.dim), mean, generator) if noise else mean

    def fit(self, z: Tensor, *, seed: int = 0) -> Self:
        """Train the inner VAE on latents (n, dim), then fit p(t) to what it makes of them.

        Leaves the prior in evaluation mode.
        """
        z = self._check_latents(z)
        self._measure(z)
        self.scale.widen(self.dim)
        report = train(self, z, self.two_stage, seed, self._refit_code, self._fit_code)
        free = self.scale.kind != "fixed" and not self.masked.any()
        if free and report.log_prob < -float(entropy(self.units)) - SETTLED:
            # The Gaussian of the same deviations, where t says nothing, is one of its kind.
            report = replace(report, converged=False)
        self.report = report
        return self

    def refit(self, z: Tensor, *, seed: int = 0) -> FitReport | None:
        """Fit p(t), where gradients do not train it, to one draw of q(t|z) for each latent."""
        return self._refit_code(self._check_latents(z), seed)

    def refitted_log_prob(self, z: Tensor, *, seed: int = 0) -> Tensor:
        """log p(t), where t is one draw of q(t|z) for each latent."""
        self._check_points("refitted_log_prob", z)
        return self.code.refitted_log_prob(self._codes(z, seed), seed=seed)

    @property
    def path_space(self) -> PathSpace:
        """That of p(t): points are encoded by m(z), followed under p(t) and lifted by g(t).

        Lengths are those of t, which are the same whatever the units of z.
        """
        below = self.code.path_space
        return PathSpace(
            below.dim,
            lambda z: below.encode(self.posterior(z)[0]),
            below.log_prob,
            lambda p: self.conditional(below.lift(p))[0],
            below.draw,
        )

    def scale_parameters(self) -> list[nn.Parameter]:
        return [*self.scale.parameters(), *self.code.scale_parameters()]

    def mask_unused(
        self,
        std: Tensor,  # (dim,): deviations of the posterior, their mean over the training images
        threshold: float = 0.9,
    ) -> int:
        """Mask the dimensions that the posterior leaves at N(0, 1); returns how many."""
        if tuple(std.shape) != (self.dim,):
            raise ValueError(
                f"{type(self).__name__}.mask_unused: std must have shape ({self.dim},); "
                f"got {tuple(std.shape)}"
            )
        self.masked.copy_(std > threshold)
        return int(self.masked.sum())

    def spread(self) -> Tensor:
        """Deviations of the latents it was fitted to; 1 where it was trained with an encoder."""
        return self.units.double()

    def warm(self, on: bool) -> None:
        # With errors as large as the latents all that t says costs more than it explains: a scale
        # profiled from the first step on settles there.
        self.scale.held = on

    @torch.no_grad()
    def settle(self, z: Tensor, seed: int) -> None:
        if self.scale.kind != "profile" or self.deviation_decoder is not None:
            return
        squares = torch.zeros(self.dim, dtype=torch.float64, device=z.device)
        for part, t in zip(z.split(PART), self._codes(z, seed).split(PART), strict=True):
            squares += ((part - self.conditional(t)[0]) / self.units).double().square().sum(0)
        self.scale.running.copy_((squares / len(z)).sqrt().clamp(*self.scale.bounds))

    def _measure(self, z: Tensor) -> None:
        """Take centre and units from latents (n, dim); what is masked keeps those of N(0, 1)."""
        wide = z.double()
        self.centre.copy_(wide.mean(0).masked_fill(self.masked, 0))
        self.units.copy_(wide.std(0).masked_fill(self.masked, 1))

    def _log_mean_weight(
        self, z: Tensor, mean: Tensor, std: Tensor, t: Tensor, log_code: Tensor
    ) -> Tensor:
        weights = self._likelihood(z, t) + log_code - gaussian_log_prob(t, mean, std)
        return weights.logsumexp(0) - math.log(len(t))

    def _likelihood(self, z: Tensor, t: Tensor) -> Tensor:
        """log p(z|t): (..., dim), (n, ..., code.dim) -> (n, ...)."""
        mean, std = self.conditional(t)
        if self.training and self.deviation_decoder is None and torch.is_grad_enabled():
            units = self.units.to(mean)
            tau = self.scale.observe((z - mean) / units, ~self.masked).to(mean)
            std = (tau * units).expand_as(mean).masked_fill(self.masked, 1)
        return gaussian_log_prob(z, mean, std)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        # Those stored before there were any had neither centre nor units.
        if prefix + "masked" in state_dict:
            state_dict.setdefault(prefix + "centre", torch.zeros(self.dim))
            state_dict.setdefault(prefix + "units", torch.ones(self.dim))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _codes(self, z: Tensor, seed: int) -> Tensor:
        """One draw of q(t|z) for each latent."""
        generator = torch.Generator(z.device).manual_seed(seed)
        with torch.no_grad():
            parts = [self.posterior(part) for part in z.split(PART)]
            return torch.cat([m + v * normal(tuple(m.shape), m, generator) for m, v in parts])

    def _refit_code(self, z: Tensor, seed: int) -> FitReport | None:
        return self.code.refit(self._codes(z, seed), seed=seed)

    def _fit_code(self, z: Tensor, seed: int) -> FitReport | None:
        return self.code.fit(self._codes(z, seed), seed=seed).report


def _dtype(network: nn.Sequential) -> torch.dtype:
    """That of a perceptron's weights."""
    layer = network[0]
    assert isinstance(layer, nn.Linear)
    return layer.weight.dtype


class Ladder(Hierarchical):
    """A hierarchical prior whose p(t) is a Gaussian mixture: LaDDer."""

    def __init__(
        self,
        dim: int,
        code_dim: int = 2,
        components: int = 50,
        mixture: MixtureFit | None = None,  # how p(t) is fitted
        **options: object,  # of Hierarchical
    ) -> None:
        code = GaussianMixture(code_dim, components, options=mixture)
        super().__init__(dim, code, **options)  # type: ignore[arg-type]
