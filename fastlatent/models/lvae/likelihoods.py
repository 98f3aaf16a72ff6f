"""Distributions of images given the features of the top-down pass, each behind one convolution."""

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from fastlatent.models.lvae.config import LikelihoodName
from fastlatent.models.lvae.layers import Normal
from fastlatent.nn import at_least_float32, bernoulli_nll
from fastlatent.noise import Noise, uncompiled
from fastlatent.ops import (
    discretized_logistic_log_prob,
    discretized_logistic_mean,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_mode,
    discretized_logistic_mixture_sample,
    discretized_logistic_mode,
    discretized_logistic_sample,
)
from fastlatent.ops.logistic.layouts import nearest_bins

COMPONENTS = 10  # of the mixture
LEVELS = 255  # 8-bit images are k / 255


class Likelihood(nn.Module, ABC):
    """p(x | features): images x (n, c, h, w) in [0, 1] given features (n, f, h, w).

    Without `filters`, the features are the numbers that describe the pixels.
    """

    parameters_per_channel = 1

    def __init__(self, filters: int | None, channels: int, log_variance_bound: float | None = None):
        super().__init__()
        self.channels, self.bound = channels, log_variance_bound
        self.head: nn.Module = nn.Identity()
        if filters is not None:
            self.head = nn.Conv2d(filters, self.parameter_count, 3, padding=1)

    @property
    def parameter_count(self) -> int:
        """Numbers that describe the distribution of one pixel."""
        return self.parameters_per_channel * self.channels

    @abstractmethod
    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood of each image in nats: (n,)."""

    @abstractmethod
    def mean(self, features: Tensor) -> Tensor:
        """Expected images (n, c, h, w)."""

    @abstractmethod
    def mode(self, features: Tensor) -> Tensor:
        """Most probable images (n, c, h, w)."""

    @abstractmethod
    def sample(self, features: Tensor, noise: Noise) -> Tensor:
        """Images drawn from the distribution (n, c, h, w)."""


class Bernoulli(Likelihood):
    """Independent binary pixels by their logits; grey values of x are taken as probabilities."""

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        return -bernoulli_nll(self.head(features), x)

    def mean(self, features: Tensor) -> Tensor:
        return at_least_float32(self.head(features)).sigmoid()

    def mode(self, features: Tensor) -> Tensor:
        logits = at_least_float32(self.head(features))
        return (logits > 0).to(logits.dtype)

    def sample(self, features: Tensor, noise: Noise) -> Tensor:
        mean = self.mean(features)
        return (_uniform(noise, mean.shape, mean) < mean).to(mean.dtype)


class Gaussian(Likelihood):
    """Independent normal pixels; a density, and neither mean nor samples stay in [0, 1]."""

    parameters_per_channel = 2

    def _moments(self, features: Tensor) -> Normal:
        return Normal.of(self.head(features), self.bound)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        mean, log_variance = self._moments(features)
        terms = (x - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
        return -0.5 * terms.flatten(1).sum(1)

    def mean(self, features: Tensor) -> Tensor:
        return self._moments(features)[0]

    def mode(self, features: Tensor) -> Tensor:
        return self.mean(features)

    def sample(self, features: Tensor, noise: Noise) -> Tensor:
        mean, log_variance = self._moments(features)
        drawn = noise.normal("image", mean.shape, mean.device, mean.dtype)
        return mean + (log_variance / 2).exp() * drawn


class DiscretizedLogistic(Likelihood):
    """Independent 8-bit values, each one logistic distribution over 256 equal bins of [0, 1]."""

    parameters_per_channel = 2

    def _logistic(self, features: Tensor) -> tuple[Tensor, Tensor]:
        raw_mean, raw_log_scale = at_least_float32(self.head(features)).chunk(2, 1)
        return raw_mean + 0.5, raw_log_scale - 1

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = self._logistic(features)
        values = discretized_logistic_log_prob(bins(x), mean, log_scale)
        return values.flatten(1).sum(1)

    def mean(self, features: Tensor) -> Tensor:
        mean = discretized_logistic_mean(*self._logistic(features))
        return (mean * (LEVELS + 1) - 0.5) / LEVELS  # k / 255 for the centre (k + 1/2) / 256

    def mode(self, features: Tensor) -> Tensor:
        mean, log_scale = self._logistic(features)
        return discretized_logistic_mode(mean, log_scale).to(mean.dtype) / LEVELS

    def sample(self, features: Tensor, noise: Noise) -> Tensor:
        mean, log_scale = self._logistic(features)
        uniforms = _uniform(noise, mean.shape, mean)
        return discretized_logistic_sample(mean, log_scale, uniforms).to(mean.dtype) / LEVELS


class DiscretizedLogisticMixture(Likelihood):
    """8-bit pixels, each a mixture of logistics whose three channels, if three, are coupled."""

    @property
    def parameter_count(self) -> int:
        return COMPONENTS * (10 if self.channels == 3 else 1 + 2 * self.channels)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        return discretized_logistic_mixture_log_prob(bins(x), self.head(features))

    def mean(self, features: Tensor) -> Tensor:
        parameters = at_least_float32(self.head(features))
        mean = discretized_logistic_mixture_mean(parameters, channels=self.channels)
        return (mean + 1) / 2

    def mode(self, features: Tensor) -> Tensor:
        parameters = at_least_float32(self.head(features))
        mode = discretized_logistic_mixture_mode(parameters, channels=self.channels)
        return mode.to(parameters.dtype) / LEVELS

    def sample(self, features: Tensor, noise: Noise) -> Tensor:
        parameters = at_least_float32(self.head(features))
        n, _, h, w = parameters.shape
        uniforms = _uniform(noise, (n, 1 + self.channels, h, w), parameters)
        drawn = discretized_logistic_mixture_sample(parameters, uniforms)
        return drawn.to(parameters.dtype) / LEVELS


LIKELIHOODS: dict[LikelihoodName, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
    "discretized_logistic_mixture": DiscretizedLogisticMixture,
}


def bins(x: Tensor) -> Tensor:
    """8-bit values of images x = k / 255: (n, c, h, w) int32.

    Raises ValueError for other values where `nearest_bins` looks; elsewhere those beyond [0, 1]
    stay off the grid, for the op to refuse: uint8 could not hold them.
    """
    expectation = "LadderVAE: x must be 8-bit images k / 255 in [0, 1] for a discretized likelihood"
    return nearest_bins(expectation, x, LEVELS, 0, LEVELS + 1)


@uncompiled
def _uniform(noise: Noise, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return noise.uniform("image", shape, like.device, like.dtype)
