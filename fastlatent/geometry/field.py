"""The metric of a two-dimensional latent space, for pictures: on a grid, with streamlines."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastlatent.geometry.frozen import Decoder
from fastlatent.geometry.metric import Metric, as_metric, condition_number, log_volume

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
    decoder: Decoder | Metric,
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
    left, right, bottom, top = field.extent
    low, size = np.array([left, bottom]), np.array([right - left, top - bottom])
    values = field.matrix.double().cpu().numpy()[..., (0, 0, 1), (0, 1, 1)]  # (h, w, 3)
    seeds = _seeds()
    stride = size.max() / STEPS / size
    ways = [_trace(values, seeds, sign, stride, largest) for sign in (1, -1)]
    taken: set[tuple[int, int]] = set()
    lines = []
    for ahead, behind in zip(*ways, strict=True):
        cells: set[tuple[int, int]] = set()
        parts = [_until_taken(way, size / size.max(), taken, cells) for way in (behind, ahead)]
        line = np.concatenate([parts[0][:0:-1], parts[1]])
        if len(line) >= SHORTEST:
            lines.append(low + line * size)
            taken |= cells
    return lines


def _seeds() -> np.ndarray:  # (n, 2) in the unit square
    """Middles of cells, in an order that leaves no region for last."""
    middles = (np.arange(SEEDS) + 0.5) / SEEDS
    grid = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    return grid[np.random.default_rng(0).permutation(len(grid))]


def _direction(values: np.ndarray, place: np.ndarray, largest: bool) -> np.ndarray:  # (n, 2)
    """Unit eigenvectors at places (n, 2) in the unit square, of metrics interpolated linearly.

    `values` (h, w, 3) holds M_00, M_01 and M_11 on the grid.
    """
    most = np.array(values.shape[1::-1]) - 1
    at = np.nan_to_num(np.clip(place, 0, 1)) * most
    x, y = np.minimum(at.astype(int), most - 1).T
    u, v = (at - np.stack([x, y], 1)).T[..., None]
    lower = (1 - u) * values[y, x] + u * values[y, x + 1]
    upper = (1 - u) * values[y + 1, x] + u * values[y + 1, x + 1]
    a, b, c = ((1 - v) * lower + v * upper).T
    angle = np.arctan2(2 * b, a - c) / 2 + (0 if largest else np.pi / 2)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _trace(
    values: np.ndarray,
    z: np.ndarray,  # (n, 2) in the unit square
    sign: int,  # of the first step along the eigenvector
    stride: np.ndarray,  # (2,) length of a step in units of the sides
    largest: bool,
) -> np.ndarray:  # (n, STEPS / 2 + 1, 2), outside of the unit square where it has left it
    """Steps of equal length by the midpoint rule."""
    direction = sign * _direction(values, z, largest)

    def turned(at: np.ndarray) -> np.ndarray:
        v = _direction(values, at, largest)
        return np.where((v * direction).sum(1, keepdims=True) < 0, -v, v)

    path = [z]
    for _ in range(STEPS // 2):
        direction = turned(z)
        direction = turned(z + stride / 2 * direction)
        z = z + stride * direction
        path.append(z)
    return np.stack(path, 1)


def _until_taken(
    way: np.ndarray,  # (k, 2)
    sides: np.ndarray,  # (2,), the longer is 1
    taken: set[tuple[int, int]],
    own: set[tuple[int, int]],
) -> np.ndarray:
    """The beginning of the way that lies in the field and in no cell of another line."""
    inside = ((way >= 0) & (way <= 1)).all(1)
    way = way[: len(way) if inside.all() else int(inside.argmin())]
    cells = np.minimum(way * sides * CELLS, CELLS - 1).astype(int)
    for k, cell in enumerate(map(tuple, cells)):
        if cell in taken:
            return way[:k]
        own.add(cell)
    return way
