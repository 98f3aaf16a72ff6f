"""Work over points and columns in tiles of bounded memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# On a CPU, intermediate results of this size stay in memory that the process keeps and finds again,
# see `keep_memory`; beyond it every page is fetched from the system anew, which takes as long as
# the arithmetic.
CPU_BYTES = 48 << 20
DEVICE_BYTES = 2 << 30


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


def keep_memory() -> None:
    """Lets the allocator of glibc keep freed blocks of up to 31 MiB, 62 MiB in all.

    It learns from what is freed: blocks up to the largest so far come from a heap that is given
    back only beyond twice that size, others from the system each time. 32 MiB is its own limit.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def over_points(
    name: str,
    tile: Tile,
    compute: Callable[[slice, int], Tensor],  # points, tangents at once -> (points, ...)
    n: int,
) -> Tensor:  # (n, ...)
    """`compute` over n points, a tile at a time; tiles are halved when memory runs out.

    Results are copied into a tensor that is made once: parts that stay would split the memory that
    intermediate results leave, and the next ones would need more. Raises MemoryError when even one
    tangent of one point does not fit.
    """
    whole: Tensor | None = None
    start = 0
    while True:
        rows = slice(start, min(n, start + tile.points))
        try:
            part = compute(rows, tile.tangents)
        except (RuntimeError, MemoryError) as error:
            smaller = tile.smaller()
            if not is_out_of_memory(error):
                raise
            if smaller is None:
                raise MemoryError(
                    f"{name}: out of memory with a single tangent of a single point"
                ) from error
            tile = smaller
            continue
        if whole is None:
            if rows.stop == n:
                return part
            whole = part.new_empty(n, *part.shape[1:])
        whole[rows] = part
        if rows.stop == n:
            return whole
        del part
        start = rows.stop


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
