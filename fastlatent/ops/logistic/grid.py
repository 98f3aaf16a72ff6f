"""What every op of the family takes beside tensors, as one value.

Public functions and their references build a `Grid` from keyword arguments. An op of torch.library
takes plain scalars alone: it is called with `grid.scalars`, and `on_grid` puts the value together
again for a kernel. C++ and Triton are given the value: `LogisticGrid` in csrc/logistic.h, and
`GRID`, which is constant in the compiled code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any

import torch

SINGLE = "int n_bins, str grid, float? min_log_scale"  # of a schema: what `scalars` is
MIXTURE = f"bool coupled, {SINGLE}"
GRIDS = ("centred", "symmetric", "unit")
UNCLAMPED = -60.0  # log-scale below which float32 could overflow


@dataclass(frozen=True)
class Grid:
    """n bins; bin k is centred at (2k - n + 1 + shift) / gamma."""

    n: int
    name: str
    floor: float  # of the log-scales
    coupled: bool | None  # whether the channels of a mixture are; None for one logistic

    @staticmethod
    def of(
        n_bins: int, grid: str, min_log_scale: float | None, coupled: bool | None = None
    ) -> "Grid":
        return Grid(n_bins, grid, UNCLAMPED if min_log_scale is None else min_log_scale, coupled)

    @property
    def scalars(self) -> tuple:
        """The same in the order of a schema, SINGLE or MIXTURE."""
        single = self.n, self.name, self.floor
        return single if self.coupled is None else (self.coupled, *single)

    @property
    def gamma(self) -> float:
        return float({"centred": self.n - 1, "symmetric": self.n, "unit": 2 * self.n}[self.name])

    @property
    def shift(self) -> int:
        return self.n if self.name == "unit" else 0

    @property
    def log_width(self) -> float:
        return math.log(2 / self.gamma)

    @property
    def bin_dtype(self) -> torch.dtype:
        return torch.uint8 if self.n <= 256 else torch.int32


def on_grid(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, whose argument `grid` is a Grid, for calls with its scalars in that place."""
    names = list(signature(kernel).parameters)
    at = names.index("grid")
    after = len(names) - at - 1

    @wraps(kernel)
    def with_scalars(*args: Any) -> Any:
        end = len(args) - after
        *coupled, n_bins, name, floor = args[at:end]
        return kernel(*args[:at], Grid.of(n_bins, name, floor, *coupled), *args[end:])

    return with_scalars


def is_coupled(coupled: bool | None, channels: int) -> bool:
    """What `coupled` means to users, who may leave it open."""
    return channels == 3 if coupled is None else coupled
