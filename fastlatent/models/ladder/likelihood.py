"""Laplace pixels around the decoded image, all with one scale."""

import math

import torch
from torch import Tensor, nn

from fastlatent.models.ladder.config import ImageScale

LEVELS = 255  # 8-bit images are k / 255
MEMORY = 0.95  # of the running error; it averages over about 20 batches
LEAST_ERROR = 1e-6  # below it a decoder that draws all images exactly would have no density


class Laplace(nn.Module):
    """p(x | z) = prod_i exp(-|x_i - f_i| / scale) / (2 scale), f the decoded image.

    The scale of a training batch, by `kind`:
    "profile": the mean absolute error b of the batch, the likeliest scale: log p = -D - D log 2b;
    "max_floor": the larger of b and a trained number, as in the published program;
    "fixed": the number it starts from.
    In evaluation b is its running mean over training, so that no image changes another's value.
    """

    error: Tensor  # () b
    batches: Tensor  # () int64, how many it is the mean of

    def __init__(self, kind: ImageScale, start: float):
        super().__init__()
        self.kind = kind
        if kind == "max_floor":
            self.raw = nn.Parameter(torch.tensor(start))
        self.register_buffer("error", torch.tensor(start))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(
        self,
        image: Tensor,  # (n, c, h, w), decoded
        x: Tensor,  # (n, c, h, w)
        keep: bool,  # take the error into the running mean
    ) -> Tensor:  # ()
        """The mean absolute error of a training batch."""
        error = (x - image).abs().mean().clamp(min=LEAST_ERROR)
        if keep:
            self.batches += 1
            memory = (1 - 1 / self.batches).clamp(max=MEMORY).to(error.dtype)
            self.error.copy_(error + memory * (self.error - error))
        return error

    def scale(self, error: Tensor | None = None) -> Tensor:  # ()
        """The scale where a batch has this error; by default where it has the running one."""
        if error is None or self.kind == "fixed":
            error = self.error
        # Without a gradient through the error: it is the likeliest scale, where there is none.
        return torch.maximum(self.raw.abs(), error) if self.kind == "max_floor" else error

    def log_prob(
        self,
        image: Tensor,  # (n, c, h, w), decoded
        x: Tensor,  # (n, c, h, w)
        scale: Tensor,  # ()
    ) -> Tensor:  # (n,)
        """Log-density of each image, in nats."""
        errors = (x - image).abs().flatten(1)
        return -errors.sum(1) / scale - errors.shape[1] * (2 * scale).log()

    def binned_log_prob(self, image: Tensor, x: Tensor, scale: Tensor) -> Tensor:  # (n,)
        """Log-probability of each image's 8-bit values, in nats."""
        return laplace_bin_log_prob((x * LEVELS).round(), image, scale).flatten(1).sum(1)


def laplace_bin_log_prob(
    bins: Tensor,  # (...) 0 to 255
    mean: Tensor,  # (...) in units of 255 bins
    scale: Tensor,  # likewise
) -> Tensor:  # (...) nats
    """Log of a Laplace distribution's mass in a bin around k / 255; the outer bins are open.

    In log space throughout: where the distribution function rounds to 0 or 1, this does not.
    """
    half = 0.5 / LEVELS / scale
    distance = (bins / LEVELS - mean) / scale
    centre = distance.abs()
    # A bin on one side of the mean, and one that the mean lies in.
    beside = half - centre - math.log(2) + _log1mexp(2 * half)
    within = (-0.5 * ((centre - half).expm1() + (-centre - half).expm1())).log()
    inner = torch.where(centre >= half, beside, within.masked_fill(centre >= half, 0))
    lowest = _log_cdf(distance + half)
    highest = _log_cdf(half - distance)
    return torch.where(bins == 0, lowest, torch.where(bins == LEVELS, highest, inner))


def _log_cdf(u: Tensor) -> Tensor:
    """Log of the standard Laplace distribution function."""
    return torch.where(u < 0, u - math.log(2), (-0.5 * (-u.clamp(min=0)).exp()).log1p())


def _log1mexp(u: Tensor) -> Tensor:
    """log(1 - exp(-u)) for u > 0."""
    return (-(-u).expm1()).log()
