"""Images of random pixels."""

import torch
from torch import Tensor


def pictures(n: int, channels: int = 3, height: int = 6, width: int = 5, seed: int = 0) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=make)
