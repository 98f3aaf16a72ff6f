"""Fits of Gaussian mixtures by scikit-learn, in float64 on the CPU.

The priors of the variational fit follow C. Fraley and A. E. Raftery, "Bayesian Regularization for
Normal Mixture Estimation and Model-Based Clustering", Journal of Classification 24, 2007.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Covariance = Literal["full", "diagonal"]

# Added to the variances, as a part of each latent's own: without it latents that fill only a
# subspace have no precision.
LEAST_VARIANCE = 1e-6

# What the priors of a component weigh, in latents. Covariances weigh as many as there are
# dimensions, the least that scikit-learn takes.
MEAN_WEIGHT = 0.01  # the mean of all latents, against the component's own
VARIANCE_WEIGHT = 3  # the prior of a diagonal covariance, against the component's own

# What scikit-learn goes on from.
WARM = {
    "em": ("weights_", "means_", "precisions_cholesky_", "lower_bound_"),
    "bayesian": (
        "weight_concentration_",
        "mean_precision_",
        "degrees_of_freedom_",
        "means_",
        "precisions_cholesky_",
        "lower_bound_",
    ),
}


@dataclass(frozen=True)
class MixtureFit:
    """How a mixture is fitted.

    `mode="original"` fits as the program of Lin and Clark does: tolerance of the bound not per
    point, covariances drawn to that of the data, nothing dropped, refits from where the last one
    ended. Its sizes are fixed; max_iter, tol, covariance_prior and prune do not count then.
    """

    method: Literal["bayesian", "em"] = "bayesian"
    """Variational (few components where few are enough), or expectation maximisation."""
    concentration: float = 0.1
    """Concentration of the Dirichlet process (bayesian): a smaller one leaves fewer components."""
    covariance_prior: float | None = None
    """Part of the latents' covariance that those of the components are drawn to (bayesian), by the
    weight of `dim` latents, of 3 where they are diagonal; default: components^(-2 / dim)."""
    max_latents: int = 20_000
    """Latents to fit to at most, drawn at random from those given."""
    max_iter: int = 200
    tol: float = 1e-3
    """Gain of the bound, in nats a latent, at which the fit ends."""
    prune: float = 1e-3
    """Weight below which a component is dropped."""
    ridge: float = 0.0
    """Added to the variances of the density, not of the fit."""
    mode: Literal["default", "original"] = "default"

    def __post_init__(self) -> None:
        _one_of("method", self.method, ("bayesian", "em"))
        _one_of("mode", self.mode, ("default", "original"))
        for name, least in (("max_latents", 2), ("max_iter", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"MixtureFit: {name} must be at least {least}; got {getattr(self, name)}"
                )
        for name in ("concentration", "covariance_prior", "tol"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"MixtureFit: {name} must be positive; got {value}")
        if not 0 <= self.prune < 1:
            raise ValueError(f"MixtureFit: prune must lie in [0, 1); got {self.prune}")
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"MixtureFit: ridge must be at least 0; got {self.ridge}")


class Fitted(NamedTuple):
    """A fitted mixture, heaviest component first unless its mode is "original"; float64."""

    weights: Tensor  # (k,), sums to 1; k: components left
    means: Tensor  # (k, d)
    precisions_cholesky: Tensor  # (k, d, d) upper triangular; (k, d) of diagonal covariances
    iterations: int
    converged: bool
    dropped: float  # mass of what was dropped
    warm: dict[str, Tensor]  # where the next fast fit goes on; empty after others


def fit_mixture(
    z: Tensor,  # (n, d) finite
    components: int,
    covariance: Covariance,
    options: MixtureFit,
    seed: int,
    warm: dict[str, Tensor] | None = None,  # of mode "original": begin there, and fit fast
) -> Fitted:
    """Fit the mixture to at most `options.max_latents` of z."""
    generator = torch.Generator().manual_seed(seed)
    if len(z) > options.max_latents:
        z = z[torch.randperm(len(z), generator=generator)[: options.max_latents].to(z.device)]
    z = z.double().cpu()
    original = options.mode == "original"
    centre, scale = torch.zeros(z.shape[1]).double(), torch.ones(z.shape[1]).double()
    if not original:
        # Each dimension in its own units, so that those of the latents change nothing.
        centre, scale = z.mean(0), z.std(0)
    points = ((z - centre) / scale).numpy()
    estimator = _estimator(points, components, covariance, options, seed, warm is not None)
    if warm:
        for name, value in warm.items():
            setattr(estimator, name, value.cpu().numpy())
        estimator.converged_ = True  # by which scikit-learn knows that there is a state to go on
    with warnings.catch_warnings():
        # That it has not converged is in the report; that points coincide shows in the weights.
        warnings.simplefilter("ignore")
        try:
            estimator.fit(points)
        except ValueError as error:
            raise ValueError(
                "GaussianMixture.fit: z must vary in every direction; the latents of a component "
                "fill only a subspace, so it has no density"
            ) from error
    return _fitted(estimator, centre, scale, options)


def _estimator(
    points: Any, components: int, covariance: Covariance, options: MixtureFit, seed: int, fast: bool
) -> Any:
    # Imported here: it takes longer than all else in this package together.
    from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

    original = options.mode == "original"
    common: dict[str, Any] = {
        "n_components": components,
        "covariance_type": "full" if covariance == "full" else "diag",
        "random_state": seed % (1 << 32),
        "warm_start": fast,
        "reg_covar": LEAST_VARIANCE,
        "max_iter": options.max_iter,
        "tol": options.tol,
    }
    if original:
        common |= {"max_iter": 1000 if fast else 2000, "tol": 1e-3}
    if options.method == "em":
        return GaussianMixture(**common)
    if not original:
        import numpy as np

        # The bound is a sum over points, and so is its gain.
        common["tol"] = options.tol * len(points)
        dim = points.shape[1]
        part = options.covariance_prior or components ** (-2 / dim)
        target = part * np.cov(points.T).reshape(dim, dim) + LEAST_VARIANCE * np.eye(dim)
        # It is added to sums of squares, and divided by the degrees of freedom with them.
        scatter = dim * (target if covariance == "full" else target.diagonal())
        common |= {
            "covariance_prior": scatter,
            "degrees_of_freedom_prior": dim,
            "mean_precision_prior": MEAN_WEIGHT,
        }
    kind = "dirichlet_distribution" if fast else "dirichlet_process"
    return BayesianGaussianMixture(
        weight_concentration_prior_type=kind,
        weight_concentration_prior=options.concentration,
        **common,
    )


def _fitted(estimator: Any, centre: Tensor, scale: Tensor, options: MixtureFit) -> Fitted:
    weights = torch.from_numpy(estimator.weights_).double()
    means = torch.from_numpy(estimator.means_) * scale + centre
    p = torch.from_numpy(estimator.precisions_cholesky_)
    if p.dim() == 2 and options.method == "bayesian" and options.mode == "default":
        p = _reweighted(estimator) ** -0.5
    p = p / (scale if p.dim() == 2 else scale[:, None])
    warm = {}
    if estimator.warm_start:
        names = WARM[options.method]
        warm = {name: torch.as_tensor(getattr(estimator, name)).double() for name in names}
    if options.ridge:
        p = _with_ridge(p, options.ridge)
    dropped = 0.0
    if options.mode == "default":
        order = weights.argsort(descending=True, stable=True)
        order = order[weights[order] >= min(options.prune, float(weights.max()))]
        weights, means, p = weights[order], means[order], p[order]
        dropped = max(0.0, 1 - float(weights.sum()))
    return Fitted(
        weights / weights.sum(),
        means,
        p,
        int(estimator.n_iter_),
        bool(estimator.converged_),
        dropped,
        warm,
    )


def _reweighted(estimator: Any) -> Tensor:  # (k, d)
    """Diagonal variances whose prior weighs VARIANCE_WEIGHT latents.

    A variance has one degree of freedom, and scikit-learn gives its prior that of d of them.
    """
    dim = estimator.means_.shape[1]
    freedom = torch.from_numpy(estimator.degrees_of_freedom_)[:, None]
    prior = torch.from_numpy(estimator.covariance_prior_)
    squares = torch.from_numpy(estimator.covariances_) * freedom - prior
    return (squares + VARIANCE_WEIGHT * prior / dim) / (VARIANCE_WEIGHT + freedom - dim)


def _with_ridge(precisions_cholesky: Tensor, ridge: float) -> Tensor:
    """The factors after `ridge` is added to all variances."""
    if precisions_cholesky.dim() == 2:
        return (precisions_cholesky**-2 + ridge) ** -0.5
    deviation = torch.linalg.inv(precisions_cholesky).mT  # S = L L^T, L lower triangular
    eye = torch.eye(deviation.shape[-1], dtype=deviation.dtype)
    factor = torch.linalg.cholesky(deviation @ deviation.mT + ridge * eye)
    return torch.linalg.solve_triangular(factor, eye, upper=False).mT


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"MixtureFit: {name} must be {' or '.join(choices)}; got {value!r}")
