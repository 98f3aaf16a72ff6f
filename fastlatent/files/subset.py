"""Which images are looked at where not all of them are: evenly spread, as files may be sorted."""

import torch
from torch import Tensor


def spread(total: int, n: int | None) -> Tensor:  # (min(n, total),) int64
    """Indices of n of so many things, all where n is None, the first among them."""
    count = total if n is None else min(n, total)
    return torch.arange(count) * total // max(count, 1)


def spread_to_both_ends(total: int, n: int) -> Tensor:  # (n,) int64
    """n indices from the first to the last of so many things, repeated where there are fewer."""
    return torch.linspace(0, total - 1, n, dtype=torch.float64).round().long()
