"""Work over points and columns in tiles of bounded memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.geometry.frozen import is_out_of_memory

CPU_BYTES = 1 << 28
DEVICE_BYTES = 1 << 31


class Tile(NamedTuple):
    """How many points, and tangents of each, are computed at once."""

    points: int
    tangents: int

    def smaller(self) -> "Tile | None":
        """Half of the points, or of the tangents of a single one; None when nothing is left."""
        if self.points > 1:
            return Tile(self.points // 2, self.tangents)
        return Tile(1, self.tangents // 2) if self.tangents > 1 else None

    @staticmethod
    def within(budget: int, tangents: int, bytes_each: int) -> "Tile":
        """The largest for `budget` bytes, at `bytes_each` for a point's value or a tangent."""
        rows = budget // max(1, bytes_each)
        points = rows // (1 + tangents)
        return Tile(points, tangents) if points else Tile(1, max(1, min(tangents, rows - 1)))


def budget(device: torch.device) -> int:
    """Bytes that a computation may use for intermediate results, by default."""
    return CPU_BYTES if device.type == "cpu" else DEVICE_BYTES


def over_points(
    name: str,
    tile: Tile,
    compute: Callable[[slice, int], Tensor],  # points, tangents at once -> (points, ...)
    n: int,
) -> Tensor:  # (n, ...)
    """`compute` over n points, a tile at a time; tiles are halved when memory runs out.

    Raises MemoryError when even one tangent of one point does not fit.
    """
    parts: list[Tensor] = []
    start = 0
    while start < n or not parts:
        try:
            parts.append(compute(slice(start, min(n, start + tile.points)), tile.tangents))
            start += tile.points
        except (RuntimeError, MemoryError) as error:
            smaller = tile.smaller()
            if not is_out_of_memory(error):
                raise
            if smaller is None:
                raise MemoryError(
                    f"{name}: out of memory with a single tangent of a single point"
                ) from error
            tile = smaller
    return parts[0] if len(parts) == 1 else torch.cat(parts)
