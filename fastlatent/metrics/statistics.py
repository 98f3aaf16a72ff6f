"""Mean and covariance of features that arrive in batches, in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastlatent.files.arrays import read_array
from fastlatent.ops.roots import lower_gram

BUFFER = 1024  # rows gathered before a product of them is taken
ASYMMETRY = 1e-4  # of a correlation: what a sum of 10^6 products rounded in float32 leaves


def asymmetry(sigma: Tensor) -> float:
    """How far covariances (..., d, d) are from symmetric; above 1 rounding does not explain it.

    An entry and its mirror image may differ by ASYMMETRY of the product of both standard
    deviations, whatever the dtype: float64 often holds what was summed in float32. The symmetric
    part changes each by half of that. A feature that hardly varies counts as if it did by what
    float32 rounds off the largest deviation.
    """
    sigma = sigma.detach().double()
    if not sigma.numel():
        return 0.0
    deviation = sigma.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    least = torch.finfo(torch.float32).eps * deviation.amax(-1, keepdim=True)
    deviation = deviation.maximum(least)
    allowed = ASYMMETRY * deviation[..., :, None] * deviation[..., None, :]
    excess = (sigma - sigma.mT).abs() / allowed  # 0 / 0 where nothing varies
    return float(excess.nan_to_num(0, math.inf).amax())


class FeatureStatistics:
    """Streaming first and second moments of features of dimension `dim`.

    Sums are taken about the means of blocks of rows and joined exactly (T. F. Chan, G. H. Golub,
    R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    COMPSTAT 1982), so a large mean costs no digits. An update takes half the
    operations of a matrix product, and in float64 on a CPU about the time of a whole one.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"FeatureStatistics: dim must be at least 1; got {dim!r}")
        self.dim = dim
        self._count: int | None = 0  # None: of loaded moments that do not say; spread = covariance
        with torch.inference_mode(False):  # so that either mode may count further rows
            self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
            self._spread = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []

    def update(self, features: Tensor) -> None:
        """Count further rows (n, dim), of any floating dtype, on any device.

        Raises TypeError or ValueError for anything else or values that are not finite, and counts
        none of the rows then.
        """
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise TypeError("FeatureStatistics: features must be a floating tensor (n, dim)")
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"FeatureStatistics: features must have shape (n, {self.dim}); "
                f"got {tuple(features.shape)}"
            )
        _ = self.count
        features = features.detach()
        if not features.isfinite().all():
            raise ValueError("FeatureStatistics: features must be finite; got NaN or infinity")
        self._waiting.append(features.to(self._mean, copy=True))
        if sum(map(len, self._waiting)) >= BUFFER:
            self._count_waiting()

    def merge(self, other: "FeatureStatistics") -> None:
        """Count what `other` has counted. Raises ValueError where its dim or its count differs."""
        if other.dim != self.dim:
            raise ValueError(
                f"FeatureStatistics: other must have dim {self.dim} to be merged; got {other.dim}"
            )
        own, count = self.count, other.count
        self._join(own, count, other._mean.to(self._mean), other._spread.to(self._spread))

    def all_reduce(self) -> None:
        """Count what all ranks have counted, on every rank; without torch.distributed nothing."""
        own = self.count
        if not dist.is_available() or not dist.is_initialized():
            return
        count = torch.tensor(float(own), dtype=torch.float64, device=self._mean.device)
        total = self._mean * count
        dist.all_reduce(count)
        dist.all_reduce(total)
        mean = total / count.clamp_min(1)
        apart = self._mean - mean
        self._spread.addr_(apart, apart, alpha=own)
        dist.all_reduce(self._spread)
        self._count = int(count)
        self._mean.copy_(mean)

    @property
    def count(self) -> int:
        """Rows counted. Raises ValueError for loaded moments that do not say of how many."""
        self._count_waiting()
        if self._count is None:
            raise ValueError(
                "FeatureStatistics: these come from a file that does not say of how many samples "
                "(no key n), so nothing can be counted along with them"
            )
        return self._count

    @property
    def known_count(self) -> int | None:
        """Rows counted; None for loaded moments that do not say of how many."""
        return None if self._count is None else self.count

    @property
    def mu(self) -> Tensor:
        """The mean: (dim,) float64. Raises ValueError before the first row."""
        if self._count is not None and self.count < 1:
            raise ValueError("FeatureStatistics: the mean needs at least 1 sample; got none")
        return self._mean.clone()

    @property
    def sigma(self) -> Tensor:
        """The covariance over n - 1: (dim, dim) float64. Raises ValueError before 2 rows."""
        if self._count is None:
            return self._spread.clone()
        if self.count < 2:
            raise ValueError(
                f"FeatureStatistics: the covariance needs at least 2 samples; got {self.count}"
            )
        lower = self._spread.tril()
        return (lower + lower.tril(-1).mT) / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """Write mu, sigma and, where it is known, their n as .npz, which pytorch-fid reads."""
        arrays: dict[str, Any] = {"mu": self.mu.cpu().numpy(), "sigma": self.sigma.cpu().numpy()}
        if self._count is not None:
            arrays["n"] = self.count
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: str | Path) -> "FeatureStatistics":
        """Read what `save` or pytorch-fid wrote; the latter leaves the count out.

        Without it mean and covariance are there, but counting further rows would not know how much
        the present ones weigh: that raises ValueError. So do a file that is no .npz, missing keys,
        and shapes that do not fit.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                there = [key for key in ("mu", "sigma", "n") if key in archive.files]
                found = {key: read_array(path, archive, key) for key in there}
                keys = ", ".join(archive.files) or "nothing"
        except Exception as error:  # damage can end in any of them
            raise ValueError(f"FeatureStatistics: {path} is not a readable .npz: {error}") from None
        if "mu" not in found or "sigma" not in found:
            raise ValueError(f"FeatureStatistics: {path} must hold mu and sigma; it holds {keys}")
        mu, sigma, n = found["mu"], found["sigma"], found.get("n")
        if (
            mu.ndim != 1
            or sigma.shape != (len(mu), len(mu))
            or {mu.dtype.kind, sigma.dtype.kind} != {"f"}
        ):
            raise ValueError(
                f"FeatureStatistics: {path} must hold floating-point mu (d,) and sigma (d, d); "
                f"got {mu.dtype} {mu.shape} and {sigma.dtype} {sigma.shape}"
            )
        excess = asymmetry(torch.from_numpy(sigma))
        if excess > 1:
            raise ValueError(
                f"FeatureStatistics: {path} must hold a symmetric sigma; its two triangles differ "
                f"by {excess:.3g} times what rounding explains"
            )
        if n is not None and (n.shape != () or n.dtype.kind not in "iu" or n < 2):
            raise ValueError(
                f"FeatureStatistics: {path} must hold n as a number from 2 up; got {n}"
            )
        statistics = FeatureStatistics(len(mu))
        statistics._count = None if n is None else int(n)
        statistics._mean.copy_(torch.from_numpy(mu))
        statistics._spread.copy_(torch.from_numpy(sigma) * (1 if n is None else int(n) - 1))
        return statistics

    def _count_waiting(self) -> None:
        if not self._waiting or self._count is None:
            return
        rows = torch.cat(self._waiting)
        self._waiting = []
        for block in rows.split(16 * BUFFER):
            mean = block.mean(0)
            self._join(self._count, len(block), mean, lower_gram((block - mean).mT))

    def _join(self, own: int, n: int, mean: Tensor, spread: Tensor) -> None:
        if n == 0:
            return
        apart = mean - self._mean
        self._spread += spread
        self._spread.addr_(apart, apart, alpha=own * n / (own + n))
        self._mean += apart * (n / (own + n))
        self._count = own + n


Given = Tensor | FeatureStatistics  # features (n, d), or the moments of some


def count_of(found: Given) -> int | None:
    """Number of samples; None where a file of moments does not say."""
    return len(found) if isinstance(found, Tensor) else found.known_count


def moments_of(found: Given) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d)."""
    if isinstance(found, Tensor):
        statistics = FeatureStatistics(found.shape[1], found.device)
        statistics.update(found)
        found = statistics
    return found.mu, found.sigma
