"""Bernoulli copula: a Gaussian thresholded at zero that has the moments of given binary codes.

J. Fajtl et al., "Latent Bernoulli Autoencoder", ICML 2020; elsewhere the dichotomised Gaussian
(Emrich and Piedmonte 1991; Macke et al. 2009). The second moments of the codes are bordered by a
reference bit that is always +1, so that means are second moments with it:

    q_ij   fraction of codes in which bits i and j differ
    H_ij = cos(pi q_ij), repaired to correlations R = A A^T where it is not positive semidefinite
    v_i  = sign(a_i) sign(a_*),  a = A g,  g ~ N(0, I),  * the reference bit

Then P(v_i = v_j) = 1/2 + arcsin(R_ij) / pi and E[v_i] = (2 / pi) arcsin(R_i*).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlatent.ops import bernoulli_copula_sample, pack_bits
from fastlatent.priors.base import FitReport, Prior
from fastlatent.priors.codes import CodeStatistics, check_codes
from fastlatent.priors.correlation import REPAIRS, gaussian_correlation
from fastlatent.priors.hyperplanes import margin_directions, slerp_weights, split_directions

_RARE = 1e-6  # bits that differ (or agree) more seldom are beyond a float32 product


class Distortion(NamedTuple):
    """What the repair costs: errors of E[v_i], and of E[v_i v_j] over pairs i < j."""

    mean_max: float
    mean_rms: float
    second_moment_max: float
    second_moment_rms: float


class Directions(NamedTuple):
    """Unit directions A^T beta of k codes."""

    beta: Tensor  # (k, d + 1) float64
    wrong_bits: Tensor  # (k,) int64: bits in which its code differs from the one asked for


class CodePath(NamedTuple):
    """Codes along k arcs."""

    codes: Tensor  # (k, steps, d)
    hamming: Tensor  # (k, steps, 2) int64: distance to the codes at start and end of the arc
    wrong_bits: Tensor  # (k, 2) int64: bits in which these two differ from the codes asked for


class BernoulliCopula(Prior):
    """Distribution of binary codes with given first and second moments.

    `repair` says what happens where no thresholded Gaussian has these moments: "clip" (Higham
    1988, the original's), "nearest_correlation" (Higham 2002: smaller errors for up to 200
    eigendecompositions), "exact_means" (means stay exact, second moments give way).
    `distortion()` is the price.

    Bits that are constant, equal or opposite in all codes are so in all samples. The repair counts
    each of them, as it would if they had coordinates of their own.
    """

    support = "bits"
    density = "none"

    def __init__(
        self, repair: Literal["clip", "nearest_correlation", "exact_means"] = "clip"
    ) -> None:
        super().__init__(None)
        if repair not in REPAIRS:
            raise ValueError(
                f"BernoulliCopula: repair must be one of {', '.join(REPAIRS)}; got {repair!r}"
            )
        self.repair = repair
        self._fit: _Fit | None = None

    def fit(self, z: CodeStatistics | Tensor, *, seed: int = 0) -> Self:
        """Fit to statistics, or to codes +/-1 (n, d), in float64 on their device.

        Nothing is random, so `seed`, which belongs to the contract of priors, changes nothing.
        """
        statistics = z if isinstance(z, CodeStatistics) else CodeStatistics.of(z)
        n = statistics.count
        if n == 0:
            raise ValueError("BernoulliCopula.fit: at least one code is needed")
        disagree = F.pad(n - statistics.agree, (0, 1, 0, 1))
        disagree[:-1, -1] = disagree[-1, :-1] = n - statistics.ones

        source, sign = _representatives(disagree, n)
        kept, place, counts = source.unique(return_inverse=True, return_counts=True)
        if len(kept) < len(source):
            disagree = disagree[kept][:, kept]
        h = gaussian_correlation(disagree, n)
        # Cholesky is the fast way to a factor and to the news that there is none.
        factor, failed = torch.linalg.cholesky_ex(h)
        if failed:
            factor = REPAIRS[self.repair](h, counts)
        self._fit = _Fit(
            source=source,
            place=place,
            sign=sign,
            h=h,
            factor=factor,
            repaired=bool(failed),
            rarest=_rarest_difference(disagree, n),
        )
        self.dim = len(sign) - 1
        self.report = FitReport(n, 1, True, math.nan)
        return self

    def refit(self, z: CodeStatistics | Tensor, *, seed: int = 0) -> FitReport | None:
        """As `fit`."""
        return self.fit(z).report

    @property
    def d(self) -> int:
        """Bits in a code."""
        return len(self._fitted("d").sign) - 1

    @property
    def repaired(self) -> bool:
        """Whether the moments needed a repair, or were too close to needing one for Cholesky."""
        return self._fitted("repaired").repaired

    @property
    def correlation(self) -> Tensor:
        """R (d + 1, d + 1) float64 of the fitted Gaussian; the last row is the reference bit."""
        fit = self._fitted("correlation")
        return fit.expand(fit.correlation)

    def means(self) -> Tensor:
        """E[v_i] of the samples in closed form: (d,) float64."""
        return self.correlation[:-1, -1].arcsin() * (2 / torch.pi)

    def agreement(self) -> Tensor:
        """P(v_i = v_j) of the samples in closed form: (d, d) float64."""
        return 0.5 + self.correlation[:-1, :-1].arcsin() / torch.pi

    def distortion(self) -> Distortion:
        """Difference between the moments of the samples and those fitted to."""
        fit = self._fitted("distortion")
        if not fit.repaired:
            return Distortion(0.0, 0.0, 0.0, 0.0)
        error = fit.expand(fit.correlation.arcsin() - fit.h.arcsin()).abs() * (2 / torch.pi)
        means, pairs = error[:-1, -1], error[:-1, :-1].fill_diagonal_(0)
        count = max(1, self.d * (self.d - 1))  # each pair is there twice
        return Distortion(
            mean_max=float(means.max()),
            mean_rms=float(means.square().mean().sqrt()),
            second_moment_max=float(pairs.max()),
            second_moment_rms=float((pairs.square().sum() / count).sqrt()),
        )

    def sample(
        self,
        n: int,
        *,
        noise: bool = True,
        generator: torch.Generator | None = None,
        packed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        chunk: int = 1 << 14,
    ) -> Tensor:  # (n, d) float32 codes +/-1, or (n, ceil(d / 64)) int64
        """n codes, `chunk` drawn at a time, on `device` (else the generator's, else the fit's).

        The factor is computed in float64; `dtype` is that of the product A g. With float32 its rows
        are off by an angle of about 1e-7, and the probability that two bits differ by that over pi.
        None takes float32 unless some pair differs in fewer than one code in a million, then
        float64.

        `noise` belongs to the contract of priors; a code has no noise-free part, False is an error.
        """
        fit = self._fitted("sample")
        if n < 0 or chunk < 1:
            raise ValueError(
                "BernoulliCopula.sample: n must be at least 0 and chunk at least 1; "
                f"got {n} and {chunk}"
            )
        if not noise:
            raise ValueError("BernoulliCopula.sample: noise must be True, codes have no other part")
        if dtype is None:
            dtype = torch.float32 if fit.rarest >= _RARE else torch.float64
        source = generator.device if generator is not None else device or fit.factor.device
        device = torch.device(device or source)
        factor = (fit.factor if fit.complete else fit.factor[fit.place]).to(device, dtype)
        parts = []
        for start in range(0, max(n, 1), chunk):
            size = (min(chunk, n - start), factor.shape[1])
            g = torch.randn(size, generator=generator, dtype=dtype, device=source).to(device)
            if fit.complete and packed:
                parts.append(bernoulli_copula_sample(factor, g, packed=True))
                continue
            codes = bernoulli_copula_sample(factor, g)
            codes = (codes if fit.complete else fit.restore_(codes)).float()
            parts.append(pack_bits(codes) if packed else codes)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def log_prob(
        self, z: Tensor, n: int = 1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Always NotImplementedError: the probability of a code is an orthant integral."""
        raise NotImplementedError(
            "BernoulliCopula.log_prob: the probability of a code has no closed form; "
            "prior.density is 'none'"
        )

    def directions(
        self,
        codes: Tensor,  # (k, d)
        method: Literal["margin", "split"] = "margin",
    ) -> Directions:
        """For each code a direction whose hyperplane cuts the bits as the code does.

        "margin": as far from every wall of the code's cell as can be. "split": the original's,
        which is often wrong in some bits. With "margin" bits are wrong only where the repair left
        the code no cell.
        """
        self._check("directions", method, codes=codes)
        beta, activations = self._directions(codes, method)
        return Directions(beta, (self._codes(activations) != codes.to(beta)).sum(1))

    def interpolate(
        self,
        a: Tensor,  # (k, d)
        b: Tensor,  # (k, d)
        steps: int,
        method: Literal["margin", "split"] = "margin",
        include_endpoints: bool = True,
    ) -> CodePath:
        """Codes along the arcs from the direction of each a to that of each b.

        At fractions 0, 1 / (steps - 1), ..., 1 of the arc, or without `include_endpoints` at
        1 / (steps + 1), ..., steps / (steps + 1). A bit changes at most once on the way, so the two
        Hamming distances add up to that between the ends.
        """
        if steps < 1 + include_endpoints:
            raise ValueError(
                f"BernoulliCopula.interpolate: steps must be at least {1 + include_endpoints}; "
                f"got {steps}"
            )
        if a.shape != b.shape:
            raise ValueError(
                f"BernoulliCopula.interpolate: b must have the shape of a, {tuple(a.shape)}; "
                f"got {tuple(b.shape)}"
            )
        self._check("interpolate", method, a=a, b=b)
        beta, activations = self._directions(torch.cat([a, b.to(a)]), method)
        start, end = activations.split(len(a))
        t = torch.linspace(0, 1, steps if include_endpoints else steps + 2).to(beta)
        t = t if include_endpoints else t[1:-1]
        first, second = slerp_weights((beta[: len(a)] * end).sum(1)[:, None], t)  # (k, steps)
        path = self._codes(first[..., None] * start[:, None] + second[..., None] * end[:, None])
        ends = torch.stack([self._codes(start), self._codes(end)], 1)  # (k, 2, d)
        return CodePath(
            codes=path.to(a),
            hamming=(path[:, :, None] != ends[:, None]).sum(-1),
            wrong_bits=(ends != torch.stack([a, b.to(a)], 1).to(ends)).sum(-1),
        )

    def _check(self, caller: str, method: str, **codes: Tensor) -> None:
        who, d = f"BernoulliCopula.{caller}", self.d
        if method not in ("margin", "split"):
            raise ValueError(f"{who}: method must be 'margin' or 'split'; got {method!r}")
        for name, value in codes.items():
            check_codes(who, name, value)
            if value.shape[1] != d:
                raise ValueError(f"{who}: {name} must have {d} bits; got {value.shape[1]}")

    def _directions(self, codes: Tensor, method: str) -> tuple[Tensor, Tensor]:
        """beta and the activations R beta, each (k, d + 1)."""
        correlation = self.correlation
        find = margin_directions if method == "margin" else split_directions
        beta = find(correlation, codes.to(correlation))
        return beta, beta @ correlation

    def _codes(self, activations: Tensor) -> Tensor:
        """Raw signs (..., d), float64; bits tied to another one follow it exactly."""
        fit = self._fitted("directions")
        sign = fit.sign[:-1].to(activations)
        return torch.where(activations[..., fit.source[:-1]] >= 0, sign, -sign)

    # The fit is not made of buffers, since their shapes would have to be known before it; these
    # three treat it like buffers, but always in float64.

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._fit is not None:
            for item in fields(_Fit):
                destination[prefix + item.name] = torch.as_tensor(getattr(self._fit, item.name))

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        missing, _, errors = lists
        names = [item.name for item in fields(_Fit)]
        absent = [prefix + name for name in names if state_dict.get(prefix + name) is None]
        if absent:
            missing.extend(absent if strict else [])
            return
        stored: dict[str, Tensor] = {name: state_dict[prefix + name] for name in names}
        sign, factor = stored["sign"], stored["factor"]
        if sign.dim() != 1 or factor.dim() != 2 or stored["source"].shape != sign.shape:
            errors.append(f"{prefix}sign, source and factor do not fit each other")
            return
        repaired, rarest = bool(stored.pop("repaired")), float(stored.pop("rarest"))
        self._fit, self.dim = _Fit(**stored, repaired=repaired, rarest=rarest), len(sign) - 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._fit is not None:
            device = fn(self._fit.factor).device
            moved = {item.name: getattr(self._fit, item.name) for item in fields(_Fit)}
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()}
            self._fit = _Fit(**moved)
        return super()._apply(fn, recurse)

    def _fitted(self, name: str) -> "_Fit":
        if self._fit is None:
            raise ValueError(f"BernoulliCopula.{name}: fit must be called first")
        return self._fit


@dataclass(frozen=True)
class _Fit:
    """Result of a fit; m of the d + 1 coordinates are kept, the others are copies up to sign."""

    source: Tensor  # (d + 1,) what each is a copy of: itself, an earlier one or the reference
    place: Tensor  # (d + 1,) where that one is among the kept
    sign: Tensor  # (d + 1,) +1 equal, -1 opposite
    h: Tensor  # (m, m) before the repair
    factor: Tensor  # (m, r) A
    repaired: bool
    rarest: float  # smallest fraction of codes that sets two kept bits apart

    @cached_property
    def correlation(self) -> Tensor:
        """R (m, m)."""
        if not self.repaired:
            return self.h
        # Rounding in the product may depend on the side of the diagonal.
        product = self.factor @ self.factor.mT
        return ((product + product.mT) / 2).clamp(-1, 1).fill_diagonal_(1)

    @property
    def complete(self) -> bool:
        """Nothing is a copy."""
        return len(self.factor) == len(self.source)

    def expand(self, matrix: Tensor) -> Tensor:
        """(m, m) -> (d + 1, d + 1)."""
        if self.complete:
            return matrix
        return matrix[self.place][:, self.place] * self.sign * self.sign[:, None]

    def restore_(self, codes: Tensor) -> Tensor:
        """Make the copies among the bits of (n, d) exact."""
        source, sign = self.source[:-1].to(codes.device), self.sign[:-1].to(codes)
        constant = (source == codes.shape[1]).nonzero()[:, 0]
        codes[:, constant] = sign[constant]
        copied = (source < torch.arange(len(source), device=codes.device)).nonzero()[:, 0]
        codes[:, copied] = codes[:, source[copied]] * sign[copied]
        return codes


def _representatives(disagree: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """For each coordinate the one it always equals or opposes: the reference bit, else the first.

    Constant bits are tied to the reference bit. Returns indices (d + 1,) and signs (d + 1,).
    """
    tied = (disagree == 0) | (disagree == n)
    first = tied.byte().argmax(1)
    source = torch.where(tied[:, -1], len(tied) - 1, first)
    sign = torch.where(disagree.gather(1, source[:, None])[:, 0] == 0, 1.0, -1.0)
    return source, sign


def _rarest_difference(disagree: Tensor, n: int) -> float:
    """Smallest fraction of the n codes in which two coordinates differ, or agree."""
    apart = torch.minimum(disagree, n - disagree).fill_diagonal_(n)
    return int(apart.min()) / n
