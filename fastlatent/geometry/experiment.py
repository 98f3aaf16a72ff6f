"""How much shorter curves get than straight lines: the Monte-Carlo experiment.

M. Y. Michelis and Q. Becker, "On Linear Interpolation in the Latent Space of Deep Generative
Models", ICLR 2021 GTRL workshop, arXiv 2105.03663: from each start go one step along the
eigenvector of the largest eigenvalue of the metric, where straight lines should do worst, and
shorten the line back.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlatent.geometry.curves import Curves, straight
from fastlatent.geometry.descent import Status
from fastlatent.geometry.frozen import Decoder
from fastlatent.geometry.length import curve_length
from fastlatent.geometry.metric import Metric, as_metric
from fastlatent.geometry.paths import equal_steps
from fastlatent.geometry.solver import Geodesics, geodesic

CONFIDENCE = 0.95


class Pairs(NamedTuple):
    """Ends of n curves."""

    start: Tensor  # (n, d)
    end: Tensor  # (n, d)
    tied: Tensor  # (n,) bool: nothing but a convention chose between two ends


def eigenvector_pairs(decoder: Decoder | Metric, start: Tensor, step: float = 1.0) -> Pairs:
    """Ends `step` away from the starts (n, d), along their eigenvector v of the largest eigenvalue.

    The step goes towards the origin: start - step sign(<start, v>) v. At right angles to v, where
    both ways are as good, the sign counts as +1 for the v whose largest component is positive; such
    pairs are `tied`. Raises ValueError where the step is not positive, a start or the metric not
    finite.
    """
    if not 0 < step < math.inf:
        raise ValueError(f"eigenvector_pairs: step must be positive; got {step}")
    if not start.isfinite().all():
        raise ValueError("eigenvector_pairs: start must be finite")
    with torch.no_grad():
        matrix = as_metric(decoder).matrix(start).double()
    broken = int((~matrix.isfinite()).any(2).any(1).sum())
    if broken:
        raise ValueError(
            f"eigenvector_pairs: the metric must be finite; it is not at {broken} of {len(start)} "
            "starts"
        )
    v = torch.linalg.eigh(matrix).eigenvectors[..., -1]  # (n, d)
    largest = v.gather(1, v.abs().argmax(1, keepdim=True))
    v = v * largest.sign()
    along = (start.double() * v).sum(1)
    # A product of rounded numbers is as good as zero long before it is zero.
    rounding = torch.finfo(start.dtype).eps * start.double().norm(dim=1)
    tied = along.abs() <= rounding
    sign = torch.where(tied, 1, along.sign())
    return Pairs(start, start - step * (sign[:, None] * v).to(start.dtype), tied)


@dataclass(frozen=True)
class Summary:
    """Statistics of a number of values; NaN where there are too few."""

    count: int
    mean: float
    sd: float
    low: (
        float  # ends of the interval that holds the true mean with probability 0.95, by Student's t
    )
    high: float
    least: float
    most: float


def summarise(values: Tensor) -> Summary:
    """Statistics of the values (n,)."""
    from scipy.special import stdtrit

    n = len(values)
    if n == 0:
        return Summary(0, *[math.nan] * 6)
    values = values.double()
    mean = float(values.mean())
    sd = float(values.std()) if n > 1 else math.nan
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n) if n > 1 else math.nan
    least, most = values.aminmax()
    return Summary(n, mean, sd, mean - half, mean + half, float(least), float(most))


@dataclass(frozen=True, eq=False)
class Experiment:
    """Shorter curves of n pairs, with their lengths by both rules."""

    start: Tensor  # (n, d)
    end: Tensor  # (n, d)
    geodesics: Geodesics
    original_straight: Tensor  # (n,), of the straight lines by the rule "original"
    original_length: Tensor  # (n,), of the shorter curves by that rule
    seconds: float  # that the search took, for all pairs

    @property
    def lines(self) -> Curves:
        """The straight lines."""
        return straight(self.start, self.end)

    @property
    def improvement(self) -> Tensor:
        """(straight - shorter) / straight by measured lengths, (n,)."""
        return self.geodesics.improvement

    @property
    def original_improvement(self) -> Tensor:
        """The same by the rule "original", (n,); below 0 where that rule finds the curve longer."""
        return (self.original_straight - self.original_length) / self.original_straight

    @property
    def counted(self) -> Tensor:
        """(n,) bool: the pairs that statistics count, whose ends differ and whose straight line has
        a length to compare with."""
        found = self.geodesics
        return (found.status != int(Status.DEGENERATE)) & found.straight_length.isfinite()

    def status_counts(self) -> dict[str, int]:
        """How many searches ended in each way that occurred."""
        counts = self.geodesics.status.bincount(minlength=len(Status)).tolist()
        return {one.name.lower(): counts[one] for one in Status if counts[one]}


def experiment(
    decoder: Decoder | Metric,
    start: Tensor,  # (n, d)
    end: Tensor,  # (n, d)
    points: int = 16,  # of the grid of the original's rule
    **options: Any,
) -> Experiment:
    """Shorter curves between the pairs by `geodesic`, whose `options` these are; both lengths."""
    metric = as_metric(decoder)
    began = time.perf_counter()
    found = geodesic(metric, start, end, points=points, **options)
    found.length.sum().item()  # on a GPU, wait until it is done
    seconds = time.perf_counter() - began
    line = straight(start, end)
    of_line, of_path = (
        curve_length(metric, curves.control, curves.knots, "original", points=points).length
        for curves in (line, found.curves)
    )
    return Experiment(start, end, found, of_line, of_path, seconds)


@torch.no_grad()
def walk_along(
    decoder: Decoder | Metric,
    curves: Curves,
    m: int,  # at least 2
) -> Tensor:  # (n, m, d)
    """Latents at equal distances along the curves, measured where they are decoded to."""
    return curves.points(equal_steps(decoder, curves, m))


def cosines(outputs: Tensor) -> Tensor:
    """Cosines of the angles between the m outputs of each curve: (n, m, ...) -> (n, m, m).

    What Michelis and Becker call the cross-correlation of a curve, of images in [-1, 1] or of
    features.
    """
    unit = nn.functional.normalize(outputs.flatten(2), dim=2)
    return unit @ unit.mT
