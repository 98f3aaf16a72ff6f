"""The metric of a two-dimensional latent space, for pictures: on a grid, with streamlines."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from fastlatent.geometry.experiment import Decoder
from fastlatent.geometry.metric import as_metric, condition_number, log_volume

SEEDS = 24  # of streamlines, along each side
CELLS = 28  # along each side, through which only one streamline passes
STEPS = 300  # of a streamline, across the whole field
SHORTEST = 20  # steps of a streamline that is kept


@dataclass(frozen=True, eq=False)
class Field:
    """Metrics on a grid that covers a rectangle of a two-dimensional latent space."""

    x: Tensor  # (w,), equally spaced
    y: Tensor  # (h,), equally spaced
    matrix: Tensor  # (h, w, 2, 2)

    @property
    def log_volume(self) -> Tensor:
        """log sqrt(det M), (h, w)."""
        return log_volume(self.matrix)

    @property
    def log_condition(self) -> Tensor:
        """log of the largest over the smallest eigenvalue, (h, w)."""
        return condition_number(self.matrix).log()

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top."""
        return float(self.x[0]), float(self.x[-1]), float(self.y[0]), float(self.y[-1])


def metric_field(
    decoder: Decoder,
    low: Tensor,  # (2,)
    high: Tensor,  # (2,)
    resolution: int = 100,  # points along the longer side
) -> Field:
    """The metric over the rectangle between two corners. Raises what `as_metric` raises."""
    if low.shape != (2,) or high.shape != (2,) or not bool((low < high).all()):
        raise ValueError(f"metric_field: low must be below high, both (2,); got {low} and {high}")
    if resolution < 2:
        raise ValueError(f"metric_field: resolution must be at least 2; got {resolution}")
    side = high - low
    width, height = (2 + (resolution - 2) * side / side.max()).round().int().tolist()
    x = torch.linspace(float(low[0]), float(high[0]), width, dtype=low.dtype, device=low.device)
    y = torch.linspace(float(low[1]), float(high[1]), height, dtype=low.dtype, device=low.device)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (h, w, 2)
    with torch.no_grad():
        matrix = as_metric(decoder).matrix(grid.flatten(0, 1))
    return Field(x, y, matrix.unflatten(0, (height, width)))


def eigenvector_lines(field: Field, largest: bool = True) -> list[np.ndarray]:  # each (k, 2)
    """Curves that follow an eigenvector of the metric everywhere, spread evenly over the field.

    An eigenvector has no sign, so that each step goes the way that turns less.
    """
    low = np.array(field.extent[::2])
    size = np.array(field.extent[1::2]) - low
    seeds = _seeds(low, size)
    stride = float(size.max()) / STEPS
    forward = _direction(field, seeds, largest)
    ways = [_trace(field, seeds, sign * forward, stride, largest) for sign in (1, -1)]
    taken: set[tuple[int, int]] = set()
    lines = []
    for ahead, behind in zip(*ways, strict=True):
        cells: set[tuple[int, int]] = set()
        parts = [_until_taken(way, low, size, taken, cells) for way in (behind, ahead)]
        line = np.concatenate([parts[0][:0:-1], parts[1]])
        if len(line) >= SHORTEST:
            lines.append(line)
            taken |= cells
    return lines


def _seeds(low: np.ndarray, size: np.ndarray) -> Tensor:  # (n, 2)
    """Middles of cells, in an order that leaves no region for last."""
    middles = (np.arange(SEEDS) + 0.5) / SEEDS
    grid = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    order = np.random.default_rng(0).permutation(len(grid))
    return torch.from_numpy(low + grid[order] * size)


def _direction(field: Field, z: Tensor, largest: bool) -> Tensor:  # (n, 2) -> (n, 2)
    """Unit eigenvectors at z, of the metric interpolated linearly on the grid."""
    left, right, bottom, top = field.extent
    low, size = z.new_tensor([left, bottom]), z.new_tensor([right - left, top - bottom])
    place = 2 * (z - low) / size - 1
    values = field.matrix[..., (0, 0, 1), (0, 1, 1)].permute(2, 0, 1)[None].to(z)
    a, b, c = grid_sample(values, place[None, None], align_corners=True)[0, :, 0]
    angle = torch.atan2(2 * b, a - c) / 2 + (0 if largest else torch.pi / 2)
    return torch.stack([angle.cos(), angle.sin()], 1)


def _trace(
    field: Field, z: Tensor, direction: Tensor, stride: float, largest: bool
) -> np.ndarray:  # (n, STEPS / 2 + 1, 2), NaN outside of the field
    """Steps of equal length by the midpoint rule, first in the given direction."""
    left, right, bottom, top = field.extent
    low, high = z.new_tensor([left, bottom]), z.new_tensor([right, top])

    def turned(at: Tensor) -> Tensor:
        v = _direction(field, at, largest)
        return torch.where((v * direction).sum(1, keepdim=True) < 0, -v, v)

    path = [z]
    for _ in range(STEPS // 2):
        direction = turned(z)
        direction = turned(z + stride / 2 * direction)
        z = z + stride * direction
        path.append(torch.where(((z >= low) & (z <= high)).all(1, keepdim=True), z, torch.nan))
    return torch.stack(path, 1).numpy()


def _until_taken(
    way: np.ndarray,  # (k, 2)
    low: np.ndarray,
    size: np.ndarray,
    taken: set[tuple[int, int]],
    own: set[tuple[int, int]],
) -> np.ndarray:
    """The beginning of the way that lies in the field and in no cell of another line."""
    inside = np.isfinite(way).all(1)
    way = way[: len(way) if inside.all() else int(inside.argmin())]
    cells = np.minimum((way - low) / size.max() * CELLS, CELLS - 1).astype(int)
    for k, cell in enumerate(map(tuple, cells)):
        if cell in taken:
            return way[:k]
        own.add(cell)
    return way
