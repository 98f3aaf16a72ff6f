"""The importance-weighted bound on the log-likelihood of a model with drawn latents."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastlatent.noise import Noise

FEW_EFFECTIVE = 10


@runtime_checkable
class Weighing(Protocol):
    """A model that infers latents in two stages, of which only the second is random."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """Training or evaluation mode."""

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """What the inference needs of the images: each (n, ...)."""

    def log_weights(self, features: Sequence[Tensor], x: Tensor, noise: Noise) -> Tensor:
        """log p(x, z) - log q(z | x) of one draw of z ~ q(z | x) for each image: (n,) nats."""


@dataclass(frozen=True, eq=False)
class ImportanceEstimate:
    """log p(x) of n images, in nats. It unpacks into the estimate and its standard error."""

    log_likelihood: Tensor  # (n,) float64; below log p(x) on average, the less the more samples
    standard_error: Tensor  # (n,) float64, of the finite number of samples; NaN for one sample
    effective_samples: Tensor  # (n,) float64, (sum of weights)^2 / sum of squared weights
    samples: int  # draws for each image

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.log_likelihood, self.standard_error))

    @property
    def dominated(self) -> Tensor:  # (n,) bool
        """Where fewer than 10 samples, and fewer than half of all, count effectively.

        There the estimate may lie far below log p(x), by more than any error can tell.
        """
        return self.effective_samples < min(FEW_EFFECTIVE, self.samples / 2)


def importance_log_likelihood(
    model: Weighing,
    x: Tensor,  # (n, c, h, w)
    samples: int = 1000,  # draws of the latents for each image
    *,
    batch: int = 128,  # draws, of one or several images, computed at a time
    noise: Noise | None = None,  # default: Noise(0, 0)
    index: Tensor | None = None,  # (n,) int64, numbers of the images; default: 0, 1, ...
) -> ImportanceEstimate:
    """The log of the mean importance weight of each image, evaluated in evaluation mode.

    Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation
    8. Images are encoded once; `samples` cost 8 bytes of memory each. Draws are a function of noise
    and number of the image, so that `batch` changes nothing but rounding. The standard error says
    how much the estimate varies with the draws. From 5 samples on, the mean of its square over many
    images is right or too large, for any distribution of the weights. It does not say how far the
    estimate is below log p(x); `dominated` says where that may be far. Raises ValueError for
    samples or batch below 1.
    """
    for name, value in (("samples", samples), ("batch", batch)):
        if value < 1:
            raise ValueError(f"importance_log_likelihood: {name} must be at least 1; got {value}")
    noise = noise or Noise(0, 0)
    index = torch.arange(len(x)) if index is None else index
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            parts = [
                _estimate(model, part, which, samples, batch, noise)
                for part, which in zip(x.split(batch), index.split(batch), strict=True)
            ]
    finally:
        model.train(training)
    log_likelihood, error, effective = (torch.cat(values) for values in zip(*parts, strict=True))
    return ImportanceEstimate(log_likelihood, error, effective, samples)


def _estimate(
    model: Weighing, x: Tensor, index: Tensor, samples: int, batch: int, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    features = model.features(x)
    images, draws = max(1, batch // samples), min(samples, batch)
    parts = []
    for first in range(0, max(1, len(x)), images):
        chosen = slice(first, first + images)
        n = len(x[chosen])
        weights = []
        for done in range(0, samples, draws):
            k = min(draws, samples - done)
            repeated = [_repeat(feature[chosen], k) for feature in features]
            drawn = noise.of_images(index[chosen], done, k)
            w = model.log_weights(repeated, _repeat(x[chosen], k), drawn)
            weights.append(w.double().unflatten(0, (n, k)))
        parts.append(_log_mean_exp(torch.cat(weights, 1)))
    log_likelihood, error, effective = (torch.cat(values) for values in zip(*parts, strict=True))
    return log_likelihood, error, effective


def _log_mean_exp(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # each (n,)
    """The log-mean of exp(w), its standard error, and the effective number of terms.

    `w` (n, k) holds log-weights in float64.
    """
    w = w.sort(1, descending=True).values
    total = w.logsumexp(1)
    shares = (w - total[:, None]).exp()
    effective = 1 / shares.square().sum(1)
    mean = total - math.log(w.shape[1])
    if w.shape[1] == 1:
        return mean, torch.full_like(mean, math.nan), effective
    variance = torch.maximum(_jackknife(w, shares), _of_largest(w) / effective.square())
    return mean, variance.sqrt(), effective


def _jackknife(w: Tensor, shares: Tensor) -> Tensor:  # (n,)
    """The jackknife variance of the log-mean of exp(w), w (n, k) in falling order.

    Its mean is at least the variance of the log-mean of k - 1 terms, whatever their law (B. Efron,
    C. Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981). Infinite where
    one weight alone is above 0, NaN of one term.
    """
    k = w.shape[1]
    if k == 1:
        return w.new_full((len(w),), math.nan)
    # The largest share may round to 1, so what is left without it is summed anew.
    first = w[:, 1:].logsumexp(1) - w.logsumexp(1)
    without = torch.cat([first[:, None], torch.log1p(-shares[:, 1:])], 1)
    variance = without.var(1) * (k - 1) ** 2 / k
    return torch.where(first == -math.inf, math.inf, variance)


def _of_largest(w: Tensor) -> Tensor:  # (n,)
    """The variance of the largest of w (n, k), which is in falling order.

    The upper tail is taken as exponential, so the largest has Gumbel's law. Its scale is the mean
    excess of the largest fifth, at most 5, over the next (B. Hill, "A simple general approach to
    inference about the tail of a distribution", Annals of Statistics 3, 1975). This steadies the
    jackknife, which knows the tail by the largest two alone where one weight exceeds all others.
    """
    most = max(1, min(5, w.shape[1] // 5))
    tail = w[:, : most + 1]
    least = torch.where(tail == -math.inf, math.inf, tail).amin(1, keepdim=True)
    excess = (tail[:, :-1] - least).clamp_min(0)
    return math.pi**2 / 6 * excess.mean(1).square()


def _repeat(x: Tensor, k: int) -> Tensor:
    """Each row k times in succession: (n, ...) -> (n k, ...), without a copy where n is 1."""
    return x[:, None].expand(-1, k, *x.shape[1:]).flatten(0, 1)
