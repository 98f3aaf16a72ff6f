"""A decoder's variance that grows away from the data: precisions by radial basis functions.

G. Arvanitidis, L. K. Hansen, S. Hauberg, "Latent Space Oddity: on the Curvature of Deep Generative
Models", ICLR 2018, arXiv 1710.11379, section 4.
"""

import copy
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlatent.noise import Noise

FLOOR = 1e-2  # precision far from all data, the published zeta
PART_BYTES = 1 << 26  # of differences, or of precisions, at a time
KEPT_BYTES = 1 << 29  # of v(z) at all latents; above that it is computed anew at each step


class RadialBasis(nn.Module):
    """Latents z (n, d) to v(z) (n, K), v_k(z) = exp(-bandwidth_k |z - c_k|^2)."""

    centers: Tensor  # (K, d)
    bandwidths: Tensor  # (K,)

    def __init__(self, dim: int, centers: int):
        super().__init__()
        self.register_buffer("centers", torch.zeros(centers, dim))
        self.register_buffer("bandwidths", torch.zeros(centers))

    def forward(self, z: Tensor) -> Tensor:
        # By differences: from norms and products, those of near points would cancel.
        squares = (z.unsqueeze(1) - self.centers).square().sum(2)
        return (-self.bandwidths * squares).exp()

    def in_parts(self, z: Tensor) -> Tensor:
        """As `forward`, with so many latents at a time that the differences take little memory."""
        rows = max(1, PART_BYTES // max(1, self.centers.nbytes))
        if len(z) <= rows:
            return self(z)
        return torch.cat([self(part) for part in z.split(rows)])


class Reciprocal(nn.Module):
    """1 / x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reciprocal()


class PrecisionNet(nn.Module):
    """Latents z (n, d) to precisions W v(z) + floor (n, D).

    Nothing of it is trained by gradients, so it has buffers and no parameters.
    """

    weight: Tensor  # (D, K)
    floor: Tensor  # (1,)
    fitted: Tensor  # () bool

    def __init__(self, dim: int, centers: int, pixels: int):
        super().__init__()
        self.basis = RadialBasis(dim, centers)
        self.register_buffer("weight", torch.zeros(pixels, centers))
        self.register_buffer("floor", torch.full((1,), FLOOR))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(self.basis.in_parts(z), self.weight) + self.floor

    def variance(self) -> nn.Sequential:
        """A frozen copy that gives variances, 1 / precision."""
        linear = nn.utils.skip_init(nn.Linear, *reversed(self.weight.shape), device="cpu")
        linear.to(self.weight).load_state_dict(
            {"weight": self.weight, "bias": self.floor.expand(len(self.weight))}
        )
        layers = nn.Sequential(copy.deepcopy(self.basis), linear, Reciprocal())
        return layers.eval().requires_grad_(False)

    @torch.no_grad()
    def fit(
        self,
        latents: Tensor,  # (n, d), of the images
        errors: Tensor | Iterable[Tensor],  # (n, D), their squared residuals, whole or in parts
        noise: Noise,
        error_floor: float,  # see fit_weights
        iterations: int,
    ) -> None:
        """Centres by k-means over the latents, bandwidths by the spread around them, then weights.

        Errors in parts are taken one after the other, so that no more than one is in memory.
        """
        centers, labels = cluster(latents, len(self.basis.centers), noise)
        self.basis.centers.copy_(centers)
        self.basis.bandwidths.copy_(0.5 / spreads(latents, centers, labels).square())
        pull = torch.zeros_like(self.weight.T)  # (K, D)
        first = 0
        for part in [errors] if isinstance(errors, Tensor) else errors:
            near = latents[first : first + len(part)]
            first += len(part)
            pull += _pull(self.basis.in_parts, near, part, error_floor)
        self.weight.copy_(_climb(self.basis.in_parts, latents, pull, self.floor, iterations))
        self.fitted.fill_(True)


def cluster(latents: Tensor, count: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """Centres (count, d) of k-means (k-means++, no empty cluster) and each latent's label (n,).

    With fewer distinct latents than centres the last centres repeat the first and have no latent.
    """
    from sklearn.cluster import KMeans

    distinct = len(latents.unique(dim=0))
    seed = int(noise.uniform("clusters", ()) * 2**31)
    means = KMeans(min(count, distinct), n_init=1, max_iter=100, tol=0, random_state=seed)
    labels = means.fit_predict(latents.cpu().numpy())
    centers = torch.from_numpy(means.cluster_centers_).to(latents)
    repeated = torch.arange(count) % len(centers)
    return centers[repeated.to(latents.device)], torch.from_numpy(labels).to(latents.device).long()


def spreads(latents: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Mean distance of each centre's latents to it: (n, d), (K, d), (n,) -> (K,).

    A centre of one latent or none takes the mean of the others, and none is below a millionth of
    the spread of all latents.
    """
    # Not by index_add, whose sums differ from run to run on CUDA.
    sums, counts = centers.new_zeros(2, len(centers))
    rows = max(1, PART_BYTES // (8 * len(centers)))
    for part, label in zip(latents.split(rows), labels.split(rows), strict=True):
        member = F.one_hot(label, len(centers)).to(latents.dtype)  # (rows, K)
        sums += (part - centers[label]).norm(dim=1) @ member
        counts += member.sum(0)
    scale = latents.std(0, unbiased=False).norm()
    scale = torch.where(scale > 0, scale, 1.0)
    many = counts > 1
    means = torch.maximum(sums / counts, 1e-6 * scale)
    others = means[many].mean() if many.any() else scale
    return torch.where(many, means, others)


def fit_weights(
    basis: Tensor,  # (n, K) in [0, 1]
    errors: Tensor,  # (n, D)
    floor: Tensor,  # (1,)
    error_floor: float,
    iterations: int,
) -> Tensor:  # (D, K), non-negative
    """Weights W of the likeliest precisions b = V W^T + floor of Gaussian errors.

    Minimises the sum of (e + error_floor) b - log b over images, for each pixel by itself a convex
    problem. Each step minimises the upper bound that Jensen's inequality gives for -log b at the
    present weights, so that none makes it worse (as D. D. Lee, H. S. Seung, "Algorithms for
    Non-negative Matrix Factorization", NeurIPS 2000). Where errors vanish, error_floor bounds b.
    """
    pull = _pull(_itself, basis, errors, error_floor)
    return _climb(_itself, basis, pull, floor, iterations)


def _pull(
    basis: Callable[[Tensor], Tensor],  # (rows, d) -> (rows, K)
    latents: Tensor,  # (n, d)
    errors: Tensor,  # (n, D)
    error_floor: float,
) -> Tensor:  # (K, D), sum of v(z) (e + error_floor)
    rows = max(1, PART_BYTES // max(1, errors[:1].nbytes))
    parts = zip(latents.split(rows), errors.split(rows), strict=True)
    return sum(basis(near).T @ (part + error_floor) for near, part in parts)


def _climb(
    basis: Callable[[Tensor], Tensor],  # (rows, d) -> (rows, K)
    latents: Tensor,  # (n, d)
    pull: Tensor,  # (K, D), see `_pull`
    floor: Tensor,  # (1,)
    iterations: int,
) -> Tensor:  # (D, K)
    """The steps of `fit_weights`, some latents at a time."""
    row = max(1, pull[0].nbytes, pull[:, 0].nbytes)
    parts = latents.split(max(1, PART_BYTES // row))
    if len(latents) * pull[:, 0].nbytes <= KEPT_BYTES:
        parts, basis = [basis(part) for part in parts], _itself
    pull = pull.clamp(min=1e-30)
    sums = sum((basis(part).sum(0) for part in parts), pull.new_zeros(()))
    weight = sums[:, None] / pull / (sums.sum() / len(latents))
    for _ in range(iterations):
        push = torch.zeros_like(weight)
        for part in parts:
            values = basis(part)
            push += values.T @ (values @ weight + floor).reciprocal()
        weight = weight * push / pull
    return weight.T


def _itself(basis: Tensor) -> Tensor:
    return basis


def gaussian_nll(
    errors: Tensor,  # (n, D), squared
    precision: Tensor,  # (n, D)
) -> Tensor:  # (n,) nats
    """-log N of residuals with such squares under these precisions, summed over each image."""
    return 0.5 * (errors * precision - precision.log() + math.log(2 * math.pi)).sum(1)
