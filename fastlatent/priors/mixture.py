"""Gaussian mixture prior: fitted by scikit-learn, its density in PyTorch."""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.priors.base import (
    FitReport,
    Prior,
    check_count,
    mixture_spread,
    normal,
    report_log_prob,
)
from fastlatent.priors.mixture_density import log_diagonal_mixture, log_full_mixture
from fastlatent.priors.mixture_fit import WARM, Covariance, Fitted, MixtureFit, fit_mixture


class GaussianMixture(Prior):
    """sum_k w_k N(m_k, S_k) with K = `components` at most, S_k = (P_k P_k^T)^-1.

    Starts as N(0, I), a single component, until it is fitted; those that a fit drops have weight
    0. The density is that of the fitted weights, means and covariances plugged in.

    `trainable` makes logits, means and factors of the precisions parameters, to be trained by
    gradients; then it starts with K unit components at random places.
    """

    _log_weights: Tensor  # (K,); unless it is trainable, as are the next two
    _means: Tensor  # (K, dim)
    _precisions_cholesky: Tensor  # (K, dim, dim), or (K, dim)

    def __init__(
        self,
        dim: int,
        components: int = 50,
        covariance: Covariance = "full",
        options: MixtureFit | None = None,  # how to fit
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__(dim)
        if components < 1:
            raise ValueError(f"GaussianMixture: components must be at least 1; got {components}")
        if covariance not in ("full", "diagonal"):
            raise ValueError(
                f"GaussianMixture: covariance must be 'full' or 'diagonal'; got {covariance!r}"
            )
        self.components = components
        self.covariance: Covariance = covariance
        self.options = options or MixtureFit()
        if self.options.max_latents < components:
            raise ValueError(
                "GaussianMixture: options.max_latents must be at least the number of components, "
                f"{components}; got {self.options.max_latents}"
            )
        self.trainable = trainable
        eye = torch.eye(dim) if covariance == "full" else torch.ones(dim)
        factors = eye.repeat(components, *[1] * eye.dim())
        if trainable:
            self.logits = nn.Parameter(torch.zeros(components))
            self.locations = nn.Parameter(torch.randn(components, dim))
            self.factors = nn.Parameter(self._unbounded(factors))
            return
        log_weights = torch.full((components,), -math.inf)
        log_weights[0] = 0
        self.register_buffer("_log_weights", log_weights)
        self.register_buffer("_means", torch.zeros(components, dim))
        self.register_buffer("_precisions_cholesky", factors)
        if self.options.mode == "original":
            self._register_warm(factors)

    def _register_warm(self, factors: Tensor) -> None:
        """Where the next refit goes on; kept with the weights, so that a resumed run does too."""
        shapes = {"means_": (self.components, self.dim), "lower_bound_": ()}
        for name in WARM[self.options.method]:
            shape = factors.shape if name == "precisions_cholesky_" else shapes.get(name)
            start = torch.zeros((self.components,) if shape is None else shape).double()
            self.register_buffer(f"_warm_{name}", start)

    @property
    def active(self) -> int:
        """Components with any weight."""
        if self.trainable:
            return self.components
        # Not kept: what other ranks broadcast into a buffer leaves no trace to know it by.
        return int((self._log_weights > -math.inf).sum())

    @property
    def least_latents(self) -> int:
        return max(2, self.components)

    @property
    def log_weights(self) -> Tensor:
        """(k,) nats, of the active components, as are the next two."""
        if self.trainable:
            return self.logits.log_softmax(0)
        return self._log_weights[: self.active]

    @property
    def means(self) -> Tensor:
        """(k, dim)."""
        return self.locations if self.trainable else self._means[: self.active]

    @property
    def precisions_cholesky(self) -> Tensor:
        """P_k, upper triangular: (k, dim, dim); of diagonal covariances 1 / s_k: (k, dim)."""
        if not self.trainable:
            return self._precisions_cholesky[: self.active]
        if self.covariance == "diagonal":
            return F.softplus(self.factors)
        diagonal = F.softplus(self.factors.diagonal(dim1=-2, dim2=-1))
        return self.factors.triu(1) + diagonal.diag_embed()

    def covariances(self) -> Tensor:
        """S_k (k, dim, dim)."""
        factor = self._deviations()
        return factor @ factor.mT if self.covariance == "full" else factor.square().diag_embed()

    @torch.no_grad()
    def spread(self) -> Tensor:
        deviations = self._deviations().square()
        variances = deviations.sum(-1) if self.covariance == "full" else deviations
        return mixture_spread(self.log_weights.exp(), self.means, variances)

    def set(self, weights: Tensor, means: Tensor, precisions_cholesky: Tensor) -> Self:
        """Make it the mixture with these k <= K weights (k,), means (k, dim) and factors P_k.

        Components of weight 0 are left out. Raises ValueError for weights that are negative or do
        not sum to 1, to rounding.
        """
        k = len(weights)
        shape = (k, self.dim, self.dim) if self.covariance == "full" else (k, self.dim)
        given = (tuple(means.shape), tuple(precisions_cholesky.shape))
        if not 1 <= k <= self.components or given != ((k, self.dim), shape):
            raise ValueError(
                f"GaussianMixture.set: expected at most {self.components} weights, means "
                f"(k, {self.dim}) and factors of shape {shape}; got {k} weights, {given[0]} and "
                f"{given[1]}"
            )
        used = self._checked_weights(weights) > 0
        weights, means, precisions_cholesky = (
            x[used] for x in (weights, means, precisions_cholesky)
        )
        k = len(weights)
        with torch.no_grad():
            if self.trainable:
                self.logits.fill_(-math.inf)
                self.logits[:k] = weights.log()
                self.locations[:k] = means
                self.factors[:k] = self._unbounded(precisions_cholesky).to(self.factors)
            else:
                self._log_weights.fill_(-math.inf)
                self._log_weights[:k] = weights.log()
                self._means[:k] = means
                self._precisions_cholesky[:k] = precisions_cholesky
        return self

    def _checked_weights(self, weights: Tensor) -> Tensor:
        total = float(weights.double().sum())
        rounding = max(torch.finfo(x).eps for x in (weights.dtype, torch.float32))
        if not bool((weights >= 0).all()) or not abs(total - 1) <= (len(weights) + 1) * rounding:
            raise ValueError(
                "GaussianMixture.set: weights must be at least 0 and sum to 1; "
                f"got {weights.tolist()[:8]}, which sum to {total:.6g}"
            )
        return weights

    def log_prob(
        self, z: Tensor, n: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        self._check_points("log_prob", z)
        p = self.precisions_cholesky
        if self.covariance == "full":
            return log_full_mixture(z, self.log_weights, self.means, p)
        return log_diagonal_mixture(z, self.log_weights, self.means, 1 / p)

    def sample(
        self, n: int, *, noise: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        check_count(self, "sample", n, least=0)
        means = self.means.detach()
        if n == 0:
            return means[:0].clone()
        weights = self.log_weights.detach().exp()
        source = weights if generator is None else weights.to(generator.device)
        which = torch.multinomial(source, n, True, generator=generator).to(means.device)
        z = normal((n, self.dim), means, generator)
        deviations = self._deviations().detach()
        if self.covariance == "diagonal":
            return means[which] + deviations[which] * z
        for k, deviation in enumerate(deviations):
            rows = (which == k).nonzero()[:, 0]
            z[rows] = means[k] + z[rows] @ deviation.mT
        return z

    def fit(self, z: Tensor, *, seed: int = 0) -> Self:
        """Fit weights, means and covariances from a cold start; float64 on the CPU.

        Raises ValueError for fewer latents than components and for dimensions that are constant.
        """
        return self._fit(z, seed, warm=False)

    def refit(self, z: Tensor, *, seed: int = 0) -> FitReport | None:
        """As `fit`, but from where the last one ended in mode "original"; None if trainable."""
        if self.trainable:
            return None
        return self._fit(z, seed, warm=self.options.mode == "original").report

    def _fit(self, z: Tensor, seed: int, warm: bool) -> Self:
        z = self._check_latents(z)
        state = None
        if warm:
            state = {
                name.removeprefix("_warm_"): tensor
                for name, tensor in self.named_buffers()
                if name.startswith("_warm_")
            }
            state = state if bool(state["means_"].any()) else {}
        fitted = fit_mixture(z, self.components, self.covariance, self.options, seed, state)
        self._take(fitted)
        generator = torch.Generator(z.device).manual_seed(seed)
        self.report = FitReport(
            latents=min(len(z), self.options.max_latents),
            iterations=fitted.iterations,
            converged=fitted.converged,
            log_prob=report_log_prob(self, z, generator),
            components=self.components,
            active=len(fitted.weights),
            dropped=fitted.dropped,
        )
        return self

    def _take(self, fitted: Fitted) -> None:
        device = next(iter(self.state_dict().values())).device
        self.set(*(x.to(device) for x in fitted[:3]))
        for name, value in fitted.warm.items():
            getattr(self, f"_warm_{name}").copy_(value)

    def _deviations(self) -> Tensor:
        """Lower triangular L_k with S_k = L_k L_k^T: (k, dim, dim), or (k, dim)."""
        p = self.precisions_cholesky
        if self.covariance == "diagonal":
            return 1 / p
        eye = torch.eye(self.dim, dtype=p.dtype, device=p.device).expand_as(p)
        return torch.linalg.solve_triangular(p.mT, eye, upper=False)

    def _unbounded(self, p: Tensor) -> Tensor:
        """What softplus, on the diagonal, takes to p."""
        if self.covariance == "diagonal":
            return p + (-(-p).expm1()).log()
        diagonal = p.diagonal(dim1=-2, dim2=-1)
        return p.triu(1) + (diagonal + (-(-diagonal).expm1()).log()).diag_embed()
