"""Which images a measure looks at where it does not look at all of them."""

import torch
from torch import Tensor


def spread(total: int, n: int | None) -> Tensor:  # (min(n, total),) int64
    """Indices of n of so many things, all where n is None, evenly spread: files may be sorted."""
    count = total if n is None else min(n, total)
    return torch.arange(count) * total // max(count, 1)
