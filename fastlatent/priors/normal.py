"""Gaussian prior: N(0, I), or the mean and covariance of given latents."""

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fastlatent.nn import at_least_float32
from fastlatent.priors.base import (
    Density,
    FitReport,
    Prior,
    check_count,
    normal,
    report_log_prob,
)
from fastlatent.priors.gaussian import LOG_2PI


class Normal(Prior):
    """N(mean, D V diag(w) V^T D); starts as N(0, I), and `fit` leaves it so for "identity".

    Latents that fill only a subspace can be fitted and sampled (some w are 0); there is no density
    on the whole space then: `density` is "none" and `log_prob` raises ValueError.
    """

    mean: Tensor  # (dim,)
    deviations: Tensor  # (dim,) sqrt(w)
    basis: Tensor  # (dim, dim) V, orthogonal; of "full" only, as is the next
    scale: Tensor  # (dim,) diagonal of D, so that latents in any units lose no digits
    like: Tensor  # (0,) of the type and device of draws

    def __init__(
        self, dim: int, covariance: Literal["identity", "diagonal", "full"] = "identity"
    ) -> None:
        super().__init__(dim)
        if covariance not in ("identity", "diagonal", "full"):
            raise ValueError(
                f"Normal: covariance must be 'identity', 'diagonal' or 'full'; got {covariance!r}"
            )
        self.covariance = covariance
        if covariance != "identity":
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("deviations", torch.ones(dim))
        if covariance == "full":
            self.register_buffer("basis", torch.eye(dim))
            self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("like", torch.empty(0), persistent=False)

    @property
    def singular(self) -> bool:
        """Whether draws fill only a subspace."""
        if self.covariance == "identity":
            return False
        return bool((self.deviations == 0).any())

    @property
    def density(self) -> Density:  # type: ignore[override]
        return "none" if self.singular else "exact"

    def log_prob(
        self, z: Tensor, n: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        self._check_points("log_prob", z)
        white, log_volume = self._whitened(at_least_float32(z))
        return -0.5 * (white.square().sum(-1) + self.dim * LOG_2PI) - log_volume

    def expected_log_prob(
        self,
        mean: Tensor,
        std: Tensor,
        z: Tensor | None = None,
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Closed form: log p(mean) - 1/2 sum_j std_j^2 / w-weighted precision of dimension j."""
        std = at_least_float32(std)
        precision = torch.ones_like(std[..., :1])
        if self.covariance != "identity":
            precision = self.deviations.to(std) ** -2
        if self.covariance == "full":
            precision = self.basis.to(std).square() @ precision / self.scale.to(std).square()
        return self.log_prob(mean) - 0.5 * (std.square() * precision).sum(-1)

    def sample(
        self, n: int, *, noise: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        check_count(self, "sample", n, least=0)
        z = normal((n, self.dim), self.like, generator)
        if self.covariance == "identity":
            return z
        return self.mean + z @ self.factor().mT

    def factor(self) -> Tensor:
        """F (dim, dim), F F^T the covariance."""
        if self.covariance == "identity":
            return torch.eye(self.dim).to(self.like)
        if self.covariance == "diagonal":
            return self.deviations.diag()
        return self.scale[:, None] * self.basis * self.deviations

    def spread(self) -> Tensor:
        return self.factor().double().norm(dim=1)

    def fit(self, z: Tensor, *, seed: int = 0) -> Self:
        """Mean and (unbiased) covariance in float64; directions without variance get exactly 0."""
        z = self._check_latents(z, varying=False)
        if self.covariance != "identity":
            wide = z.double()
            mean = wide.mean(0)
            # Each dimension in its own units: one of large numbers hides no other.
            scale = wide.std(0)
            rounding = torch.finfo(z.dtype).eps * wide.abs().amax(0)  # that float32 latents carry
            flat = scale <= rounding
            self.mean.copy_(mean)
            if self.covariance == "full":
                scale = torch.where(flat, 1.0, scale)
                white = (wide - mean).masked_fill(flat, 0) / scale
                w, basis = torch.linalg.eigh(white.mT @ white / (len(z) - 1))
                # The error of the product and of the eigenvalues, and that of the latents.
                floor = self.dim * torch.finfo(torch.float64).eps * w.max()
                floor = floor.maximum((rounding / scale).square() @ basis.square())
                self.scale.copy_(scale)
                self.basis.copy_(basis)
                self.deviations.copy_(torch.where(w > floor, w, 0).sqrt())
            else:
                self.deviations.copy_(torch.where(flat, 0, scale))
        self.report = FitReport(len(z), 1, True, math.nan)
        if not self.singular:
            log_prob = report_log_prob(self, z, torch.Generator(z.device).manual_seed(seed))
            self.report = FitReport(len(z), 1, True, log_prob)
        return self

    def refit(self, z: Tensor, *, seed: int = 0) -> FitReport | None:
        return None if self.covariance == "identity" else self.fit(z, seed=seed).report

    def _whitened(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """Coordinates that are N(0, I) under the prior, and the log of their scales' product."""
        if self.covariance == "identity":
            return z, 0.0
        if self.singular:
            raise ValueError(
                "Normal.log_prob: the latents it was fitted to fill only a subspace, so there is "
                "no density; samples can be drawn"
            )
        z = z - self.mean.to(z)
        deviations = self.deviations.to(z)
        log_volume = deviations.log().sum()
        if self.covariance == "full":
            scale = self.scale.to(z)
            z, log_volume = (z / scale) @ self.basis.to(z), log_volume + scale.log().sum()
        return z / deviations, log_volume

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        # Those stored before there was a scale have all of it in their deviations.
        if self.covariance == "full" and prefix + "basis" in state_dict:
            state_dict.setdefault(prefix + "scale", torch.ones(self.dim))
        super()._load_from_state_dict(state_dict, prefix, *rest)
