"""Distributions over latents, fitted after training.

Every prior has `fit(z)`, `sample(n, *, noise=True, generator=None)`, `log_prob(z)` and `density`,
which says what `log_prob` returns: "exact", "lower_bound", or "none" where it raises.
"""

from fastlatent.priors.codes import CodeStatistics, edit_attribute, random_bits
from fastlatent.priors.copula import BernoulliCopula, CodePath, Directions, Distortion
from fastlatent.priors.hyperplanes import slerp

__all__ = [
    "BernoulliCopula",
    "CodePath",
    "CodeStatistics",
    "Directions",
    "Distortion",
    "edit_attribute",
    "random_bits",
    "slerp",
]
