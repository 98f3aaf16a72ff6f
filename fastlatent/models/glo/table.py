"""The latents of training images: their region, and the table that holds them."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastlatent.models.glo.config import Projection

CHUNK_BYTES = 1 << 24  # of the table at a time, where all of it is passed over


def project(
    z: Tensor,  # (..., d)
    region: Projection,
) -> Tensor:  # (..., d)
    """The nearest point of the unit ball or of its surface; zero stays zero on both."""
    if region == "none":
        return z
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / length.clamp_min(1e-12 if region == "sphere" else 1.0)


def arithmetic(
    plus: Tensor,  # (k, d)
    minus: Tensor,  # (l, d)
    other: Tensor,  # (m, d)
    region: Projection,
) -> Tensor:  # (d,)
    """mean(plus) - mean(minus) + mean(other), in the region."""
    return project(plus.mean(0) - minus.mean(0) + other.mean(0), region)


class LatentTable:
    """The latents of N images (N, d), float32, contiguous. A step touches the rows of its batch.

    Rank `rank` of `world` processes holds images rank, rank + world, ...; indices are those
    of all images. Nothing is ever as large as the table but the table.
    """

    def __init__(
        self, values: Tensor, region: Projection, *, count: int, rank: int = 0, world: int = 1
    ):
        """Take over `values` (n, d), the rows of this rank out of `count`."""
        own = len(range(rank, count, world))
        if values.dim() != 2 or len(values) != own or values.dtype != torch.float32:
            raise ValueError(
                f"LatentTable: values must be float32 ({own}, d), the rows of rank {rank} of "
                f"{world} out of {count}; got {values.dtype} of shape {tuple(values.shape)}"
            )
        self.values, self.region = values, region
        self.count, self.rank, self.world = count, rank, world

    @staticmethod
    def empty(
        count: int,
        dim: int,
        region: Projection,
        device: torch.device | str = "cpu",
        *,
        scratch: Path | None = None,  # a folder: the rows lie in a file there that has no name
        rank: int = 0,
        world: int = 1,
    ) -> "LatentTable":
        """Room for latents; OSError where the disk has none."""
        own = len(range(rank, count, world))
        values = (
            torch.empty(own, dim, device=device) if scratch is None else mapped(own, dim, scratch)
        )
        return LatentTable(values, region, count=count, rank=rank, world=world)

    @property
    def dim(self) -> int:
        """Numbers in a latent vector."""
        return self.values.shape[1]

    def rows(self, index: Tensor, device: torch.device | str | None = None) -> Tensor:
        """The latents of the images at `index` (k,) as a tensor of their own: (k, d).

        Raises ValueError, as the next two do, for images that another rank holds.
        """
        return self.values.index_select(0, self._place(index)).to(device or self.values.device)

    def write(self, index: Tensor, latents: Tensor) -> None:
        """Put in the latents (k, d) of the images at `index` (k,), no two of them the same."""
        self.values.index_copy_(0, self._place(index), latents.to(self.values.device))

    @torch.no_grad()
    def move(self, index: Tensor, latents: Tensor, gradient: Tensor, rate: float) -> None:
        """Gradient step of the latents (k, d) at `index` (k,), with projection into the region."""
        self.write(index, project(torch.sub(latents, gradient, alpha=rate), self.region))

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of this rank's part, some megabytes at a time, without copying."""
        rows = max(1, CHUNK_BYTES // (4 * self.dim))
        for start in range(0, len(self.values), rows):
            yield start, self.values[start : start + rows]

    def moments(
        self, total: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> tuple[Tensor, Tensor]:  # (d,), (d, d), float64
        """Mean and covariance (divisor N - 1) of all latents; `total` adds up over the ranks."""
        mean = torch.zeros(self.dim, dtype=torch.float64, device=self.values.device)
        for _, rows in self.chunks():
            mean += rows.double().sum(0)
        mean = total(mean) / self.count
        square = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=self.values.device)
        for _, rows in self.chunks():
            centred = rows.double().sub_(mean)
            square.addmm_(centred.T, centred)
        return mean, total(square) / max(self.count - 1, 1)

    def _place(self, index: Tensor) -> Tensor:
        """Rows of this rank's part that hold the images at `index`."""
        index = index.to(self.values.device)
        if self.world == 1:
            return index
        if not bool((index % self.world == self.rank).all()):
            other = int(index[index % self.world != self.rank][0])
            raise ValueError(
                f"LatentTable: rank {self.rank} of {self.world} holds the latents of images "
                f"{self.rank}, {self.rank + self.world}, ...; got index {other}"
            )
        return torch.div(index, self.world, rounding_mode="floor")


def mapped(count: int, dim: int, folder: Path) -> Tensor:
    """(count, dim) float32 in a file that is gone when its memory is; OSError for a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    size = max(count * dim, 1)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".codes-") as file:
        # A file with holes would end the process when the disk is full, not raise.
        os.posix_fallocate(file.fileno(), 0, 4 * size)
        flat = torch.from_file(file.name, shared=True, size=size, dtype=torch.float32)
    return flat[: count * dim].view(count, dim)
