"""What the cases of both ops are made of."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def normal(shape: tuple[int, ...], device: str, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    make = torch.Generator().manual_seed(len(shape) + sum(shape))
    return (scale * torch.randn(shape, generator=make, dtype=torch.float64)).to(device, dtype)
