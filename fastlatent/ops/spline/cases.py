"""Test arguments that the family shares."""

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    make = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=make, dtype=torch.float64).to(device, dtype)
