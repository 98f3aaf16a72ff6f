"""Distributions over latents, learned with the model or fitted after training.

Every prior has `fit(z)`, `sample(n, *, noise=True, generator=None)`, `log_prob(z)` and `density`,
which says what `log_prob` returns: "exact", "lower_bound", or "none" where it raises. The whole
contract is `Prior`.
"""

from fastlatent.estimate import Estimate
from fastlatent.priors.aggregate import Divergences, aggregate_log_prob, posterior_divergences
from fastlatent.priors.base import FitReport, PathSpace, Prior, cross_entropy
from fastlatent.priors.codes import CodeStatistics, edit_attribute, random_bits
from fastlatent.priors.copula import BernoulliCopula, CodePath, Directions, Distortion
from fastlatent.priors.hierarchical import Bound, Hierarchical, Ladder
from fastlatent.priors.hyperplanes import slerp
from fastlatent.priors.marginal import kernel_log_prob, quadrature_log_prob
from fastlatent.priors.mixture import GaussianMixture
from fastlatent.priors.mixture_fit import MixtureFit
from fastlatent.priors.normal import Normal
from fastlatent.priors.settings import PriorKind, PriorSettings
from fastlatent.priors.two_stage import TwoStage
from fastlatent.priors.vamp import VampPrior

__all__ = [
    "BernoulliCopula",
    "Bound",
    "CodePath",
    "CodeStatistics",
    "Directions",
    "Distortion",
    "Divergences",
    "Estimate",
    "FitReport",
    "GaussianMixture",
    "Hierarchical",
    "Ladder",
    "MixtureFit",
    "Normal",
    "PathSpace",
    "Prior",
    "PriorKind",
    "PriorSettings",
    "TwoStage",
    "VampPrior",
    "aggregate_log_prob",
    "cross_entropy",
    "edit_attribute",
    "kernel_log_prob",
    "posterior_divergences",
    "quadrature_log_prob",
    "random_bits",
    "slerp",
]
