"""The contract of all priors: distributions over latents, learned or fitted after training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fastlatent.estimate import Estimate
from fastlatent.noise import RowStream

Density = Literal["exact", "lower_bound", "none"]
Support = Literal["real", "bits"]

CHUNK = 1 << 16  # latents looked at a time where a whole set is measured
SPREAD_DRAWS = 1 << 14  # by which deviations of latents are known to half a percent


@dataclass(frozen=True)
class FitReport:
    """What a fit came to."""

    latents: int  # that were fitted to
    iterations: int
    converged: bool
    log_prob: float  # mean log-density of (at most 10,000 of) these latents; NaN: there is none
    components: int | None = None  # of a mixture, as asked for
    active: int | None = None  # components that are left
    dropped: float = 0.0  # mass of those that were dropped


class PathSpace(NamedTuple):
    """Where paths of high likelihood are looked for: the latents themselves, or those below."""

    dim: int
    encode: Callable[[Tensor], Tensor]  # latents (..., prior.dim) -> points (..., dim)
    log_prob: Callable[[Tensor], Tensor]  # points (..., dim) -> nats (...), exact
    lift: Callable[[Tensor], Tensor]  # points (..., dim) -> latents (..., prior.dim)
    draw: Callable[[int, torch.Generator | None], Tensor]  # n -> points (n, dim), of that density
    units: Tensor | None = None  # (dim,): what lengths are measured in; None: 1


class Prior(nn.Module, ABC):
    """Distribution over latents z (..., dim).

    Parameters are what gradients train; what is fitted are buffers, so `state_dict` is complete.
    Random numbers come from the generator given, or from PyTorch's global one.
    """

    support: Support = "real"
    density: Density = "exact"  # what log_prob returns; "none": it raises
    dim: int  # of a latent; 0 as long as only a fit can tell
    report: FitReport | None = None  # of the last fit
    on_step: Callable[[], None] | None = None  # called after each step of a fit by gradients

    def __init__(self, dim: int | None):  # None: the fit tells
        super().__init__()
        if dim is not None and dim < 1:
            raise ValueError(f"{type(self).__name__}: dim must be at least 1; got {dim}")
        self.dim = dim or 0

    @abstractmethod
    def log_prob(
        self,
        z: Tensor,  # (..., dim)
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # (...) nats
        """log p(z), with gradients to z and to the parameters.

        Where `density` is "lower_bound": the log-mean of n importance weights, drawn by the
        generator; it never exceeds log p(z) in the mean and comes closer with n.
        """

    def expected_log_prob(
        self,
        mean: Tensor,  # (..., dim)
        std: Tensor,  # (..., dim)
        z: Tensor | None = None,  # (..., dim): a draw of N(mean, std^2), used where given
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # (...) nats
        """E[log p(z)] under N(mean, diag std^2), by n fresh draws, or closed where there is a form.

        With n = 1 a draw that is given is used.
        """
        self._check_points("expected_log_prob", mean)
        if n == 1 and z is not None:
            return self.log_prob(z, generator=generator)
        check_count(self, "expected_log_prob", n)
        draws = mean + std * normal((n, *mean.shape), mean, generator)
        return self.log_prob(draws, generator=generator).mean(0)

    @abstractmethod
    def sample(
        self,
        n: int,
        *,
        noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # (n, dim)
        """n draws, without gradients.

        `noise=False` leaves out the last, independent noise of a hierarchy.
        """

    def steady_log_prob(self, z: Tensor, n: int = 1, *, seed: int = 0) -> Tensor:
        """`log_prob` (...), by the same draws for each of the latents z (..., dim)."""
        return self.log_prob(z, n)

    @abstractmethod
    def fit(self, z: Tensor, *, seed: int = 0) -> Self:
        """Fit everything to latents z (n, dim); what came of it is in `report`.

        Raises ValueError where z is not finite, too small or does not vary.
        """

    def refit(self, z: Tensor, *, seed: int = 0) -> FitReport | None:
        """Fit what gradients do not train to latents (n, dim) as they are now; None: nothing."""
        return None

    def refitted_log_prob(
        self,
        z: Tensor,  # (n, dim)
        *,
        seed: int = 0,
    ) -> Tensor:  # (n,) nats
        """The log-density of what `refit` fits, by default of all; for latents held out of it."""
        return self.log_prob(z)

    @property
    def path_space(self) -> PathSpace:
        """The space to look for likely paths in: by default that of the latents.

        Raises ValueError where the density is not exact there.
        """
        if self.density != "exact":
            raise ValueError(
                f"{type(self).__name__}.path_space: likely paths need an exact density; "
                f"this prior's is {self.density!r}"
            )
        return PathSpace(
            self.dim, self._as_points, self.log_prob, _identity, self._draw, self.spread()
        )

    @torch.no_grad()
    def spread(self) -> Tensor:
        """Deviation of each latent under the prior (dim,), by draws where there is no form."""
        stream = torch.Generator(next(iter(self.state_dict().values())).device).manual_seed(0)
        return self.sample(SPREAD_DRAWS, generator=stream).double().std(0)

    def bind(self, encoder: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Self:
        """Take the map from images to mean and deviation, each (n, dim), if the prior needs it."""
        return self

    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters that are scales and may want a learning rate of their own."""
        return []

    @property
    def least_latents(self) -> int:
        """The fewest latents that `fit` takes."""
        return 2

    def warm(self, on: bool) -> None:
        """Begin (or end) the first part of a fit by gradients; nothing by default."""

    def settle(self, z: Tensor, seed: int) -> None:
        """Take from all latents what a fit by gradients saw of batches; nothing by default."""

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.sample(n, generator=generator)

    def _as_points(self, z: Tensor) -> Tensor:
        self._check_points("path_space.encode", z)
        return z

    def _check_points(self, method: str, z: Tensor, name: str = "z") -> None:
        who = f"{type(self).__name__}.{method}: {name} must be"
        if not isinstance(z, Tensor) or not z.is_floating_point():
            kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"{who} floating-point latents; got {kind}")
        if z.dim() == 0 or z.shape[-1] != self.dim:
            raise ValueError(f"{who} of shape (..., {self.dim}); got {tuple(z.shape)}")

    def _check_latents(self, z: Tensor, *, varying: bool = True) -> Tensor:
        """z, ready to be fitted to; `varying`: every single dimension has to vary."""
        who = f"{type(self).__name__}.fit"
        self._check_points("fit", z)
        if z.dim() != 2:
            raise ValueError(f"{who}: z must have shape (n, {self.dim}); got {tuple(z.shape)}")
        if len(z) < self.least_latents:
            raise ValueError(
                f"{who}: at least {self.least_latents} latents are needed; got {len(z)}"
            )
        if not z.isfinite().all():
            bad = int((~z.isfinite()).any(1).sum())
            raise ValueError(f"{who}: z must be finite; {bad} of {len(z)} latents are not")
        constant = ((z == z[0]).all(0)).nonzero()[:, 0].tolist()
        if len(constant) == self.dim:
            raise ValueError(f"{who}: all {len(z)} latents are equal, so there is nothing to fit")
        if varying and constant:
            which = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
            raise ValueError(
                f"{who}: z must vary in every dimension, its covariance is singular; "
                f"constant: {which}"
            )
        return z.detach()


def cross_entropy(
    prior: Prior,
    z: Tensor,  # (m, dim)
    n: int = 1,  # importance draws where the density is a bound
    *,
    generator: torch.Generator | None = None,
) -> Estimate:
    """-E[log p(z)] over the latents z: the number by which priors compare on one encoder.

    An upper bound where the density is a lower one. Raises ValueError where there is none.
    """
    if prior.density == "none":
        raise ValueError(f"cross_entropy: {type(prior).__name__} has no density")
    if z.dim() != 2 or len(z) < 2:
        raise ValueError(f"cross_entropy: z must hold 2 latents or more; got {tuple(z.shape)}")
    with torch.no_grad():
        parts = [
            prior.log_prob(part, n, generator=generator) for part in z.split(max(1, CHUNK // n))
        ]
    values = torch.cat(parts).double()
    return Estimate(-float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def report_log_prob(prior: Prior, z: Tensor, generator: torch.Generator) -> float:
    """The mean log-density of up to 10,000 of the latents, for the report of a fit."""
    return -cross_entropy(prior, z[:10_000], generator=generator).value


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the dtype and on the device of `like`."""
    if isinstance(generator, RowStream):
        return generator.normal(shape, like.dtype).to(like.device)
    device = generator.device if generator is not None else like.device
    drawn = torch.randn(shape, generator=generator, device=device, dtype=like.dtype)
    return drawn.to(like.device)


def mixture_spread(
    weights: Tensor,  # (K,), sum 1
    means: Tensor,  # (K, d)
    variances: Tensor,  # (K, d) within components
) -> Tensor:  # (d,) float64
    """Deviation of each dimension of a mixture."""
    w, m = weights.double(), means.double()
    return (w @ (variances.double() + (m - w @ m).square())).sqrt()


def check_count(prior: Prior, method: str, n: int, least: int = 1) -> None:
    if n < least:
        raise ValueError(f"{type(prior).__name__}.{method}: n must be at least {least}; got {n}")


def _identity(z: Tensor) -> Tensor:
    return z
