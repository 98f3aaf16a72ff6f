"""The importance-weighted bound on the log-likelihood of a model with drawn latents."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fastlatent.noise import Noise


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


class ImportanceEstimate(NamedTuple):
    """log p(x) of n images, in nats."""

    log_likelihood: Tensor  # (n,) float64; below log p(x) on average, the less the more samples
    standard_error: Tensor  # (n,) float64, of the finite number of samples; NaN for one sample


def importance_log_likelihood(
    model: Weighing,
    x: Tensor,  # (n, c, h, w)
    samples: int = 1000,  # draws of the latents for each image
    *,
    batch: int = 128,  # draws, of one or several images, computed at a time
    noise: Noise | None = None,  # default: Noise(0, 0)
) -> ImportanceEstimate:
    """The log of the mean importance weight of each image, evaluated in evaluation mode.

    Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation
    8. Images are encoded once; memory does not grow with `samples`. The same arguments give the
    same result. The standard error is that of the first-order expansion of the logarithm.
    """
    for name, value in (("samples", samples), ("batch", batch)):
        if value < 1:
            raise ValueError(f"importance_log_likelihood: {name} must be at least 1; got {value}")
    noise = noise or Noise(0, 0)
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            parts = [
                _estimate(model, part, samples, batch, noise.derived(f"images {number}"))
                for number, part in enumerate(x.split(batch))
            ]
    finally:
        model.train(training)
    return ImportanceEstimate(*(torch.cat(values) for values in zip(*parts, strict=True)))


class _LogMeanExp:
    """The mean of exp(w) over draws that arrive in turn, with its error: in log space, float64."""

    def __init__(self, n: int, device: torch.device):
        self._count = 0
        self._peak = torch.full((n,), -math.inf, dtype=torch.float64, device=device)
        self._sum = torch.zeros_like(self._peak)  # of exp(w - peak)
        self._squares = torch.zeros_like(self._peak)  # of exp(2 (w - peak))

    def add(self, w: Tensor) -> None:
        """Log-weights (n, k) of k further draws."""
        w = w.double()
        peak = torch.maximum(self._peak, w.amax(1))
        base = torch.where(peak == -math.inf, 0, peak)  # all weights so far are 0
        shrink, terms = (self._peak - base).exp(), (w - base[:, None]).exp()
        self._sum = self._sum * shrink + terms.sum(1)
        self._squares = self._squares * shrink.square() + terms.square().sum(1)
        self._count += w.shape[1]
        self._peak = peak

    def result(self) -> ImportanceEstimate:
        mean = self._peak + (self._sum / self._count).log()
        if self._count == 1:
            return ImportanceEstimate(mean, torch.full_like(mean, math.nan))
        # var(mean w) / (mean w)^2
        spread = (self._count * self._squares / self._sum.square() - 1).clamp(min=0)
        return ImportanceEstimate(mean, (spread / (self._count - 1)).sqrt())


def _estimate(
    model: Weighing, x: Tensor, samples: int, batch: int, noise: Noise
) -> ImportanceEstimate:
    features = model.features(x)
    images, draws = max(1, batch // samples), min(samples, batch)
    parts = []
    for first in range(0, max(1, len(x)), images):
        chosen = slice(first, first + images)
        n = len(x[chosen])
        total = _LogMeanExp(n, x.device)
        for done in range(0, samples, draws):
            k = min(draws, samples - done)
            repeated = [_repeat(feature[chosen], k) for feature in features]
            drawn = noise.derived(f"{first}/{done}")
            w = model.log_weights(repeated, _repeat(x[chosen], k), drawn)
            total.add(w.unflatten(0, (n, k)))
        parts.append(total.result())
    return ImportanceEstimate(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _repeat(x: Tensor, k: int) -> Tensor:
    """Each row k times in succession: (n, ...) -> (n k, ...), without a copy where n is 1."""
    return x[:, None].expand(-1, k, *x.shape[1:]).flatten(0, 1)
