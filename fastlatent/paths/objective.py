"""What a likelihood path minimises: length, uneven steps, and improbable points.

J = w_len sum_i l_i + w_eq std(l) - sum_{i=1..n} log p(p_i), l_i = |p_{i+1} - p_i|, i = 0..n, with
the population's standard deviation; after the program of Lin and Clark, "LaDDer: Latent Data
Distribution Modelling with a Generative Prior", BMVC 2020, arXiv 2009.00088.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LogProb = Callable[[Tensor], Tensor]  # (m, d) -> (m,) nats, differentiable
Reduction = Literal["sum", "mean"]

MEAN_WEIGHT = 8  # of the mean of -log p: as the sum has with the 8 points of the original


class Terms(NamedTuple):
    """What paths cost; each (...), one entry for each path."""

    length: Tensor  # sum of the steps
    spread: Tensor  # standard deviation of the steps
    nll: Tensor  # -sum log p over the inner points, nats
    objective: Tensor  # J


@dataclass(frozen=True)
class Objective:
    """J of paths (k, n + 2, d), their ends among the points."""

    log_prob: LogProb
    length_weight: float = 10.0
    spread_weight: float = 100.0
    reduction: Reduction = "sum"
    typical: float | None = None  # c: a point costs max(0, -log p - c) in place of -log p
    units: Tensor | None = None  # (d,): what lengths are measured in, for each dimension; None: 1

    @torch.no_grad()
    def terms(self, path: Tensor) -> Terms:
        """The terms of each path."""
        n = path.shape[1] - 2
        steps = (path.diff(dim=1) / self._units(path)).norm(dim=2)
        log_prob = self.log_prob(path[:, 1:-1].flatten(0, 1)).unflatten(0, (len(path), n))
        return self._terms(steps, log_prob.to(path.dtype))

    def terms_and_gradient(
        self,
        path: Tensor,  # (k, n + 2, d)
        slack: Tensor,  # (k,), see below
    ) -> tuple[Terms, Tensor]:  # gradient (k, n, d)
        """The terms, and the gradient of J with sqrt(var + slack^2) in place of the deviation.

        The gradient of a standard deviation is infinite where all steps are equal, as they are on
        a straight line. Where a step has no length or `slack` and the deviation are 0, the
        gradient of that term counts as 0.
        """
        n = path.shape[1] - 2
        inner = path[:, 1:-1].flatten(0, 1).detach().requires_grad_()
        with torch.enable_grad():
            log_prob = self.log_prob(inner)
            (score,) = torch.autograd.grad(log_prob.sum(), inner)
        log_prob = log_prob.detach().to(path.dtype).unflatten(0, (-1, n))
        units = self._units(path)
        segments = path.diff(dim=1) / units
        steps = segments.norm(dim=2)
        terms = self._terms(steps, log_prob)

        weight = self.point_weight(n)
        if self.typical is not None:
            score = score * (-log_prob > self.typical).flatten()[:, None]
        deviation = steps - steps.mean(1, keepdim=True)
        smooth = (terms.spread.square() + slack.square()).sqrt()[:, None] * (n + 1)
        pull = self.length_weight + self.spread_weight * _ratio(deviation, smooth)
        force = _ratio(pull, steps)[:, :, None] * segments / units  # of each step on its end
        return terms, force[:, :-1] - force[:, 1:] - weight * score.unflatten(0, (-1, n))

    def point_weight(self, n: int) -> float:
        """What -log p of each of n points counts."""
        return 1.0 if self.reduction == "sum" else MEAN_WEIGHT / n

    def _units(self, path: Tensor) -> Tensor | float:
        return 1.0 if self.units is None else self.units.to(path)

    def _terms(self, steps: Tensor, log_prob: Tensor) -> Terms:
        n = log_prob.shape[1]
        length = steps.sum(1)
        spread = (steps - steps.mean(1, keepdim=True)).square().mean(1).sqrt()
        nll = -log_prob.sum(1)
        cost = nll
        if self.typical is not None:
            cost = (-log_prob - self.typical).clamp(min=0).sum(1)
        value = self.length_weight * length + self.spread_weight * spread
        return Terms(length, spread, nll, value + self.point_weight(n) * cost)


def typical_level(log_prob: LogProb, draws: Tensor, share: float = 0.95) -> float:
    """The -log p that this share of draws (m, d) from the distribution does not exceed, in nats.

    In many dimensions hardly any draw is as probable as the mode. A path that only keeps below this
    level stays where data lies.
    """
    with torch.no_grad():
        return float(-log_prob(draws).double().quantile(1 - share))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b, 0)
