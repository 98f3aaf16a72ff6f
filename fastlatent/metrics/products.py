"""Products of the rows of two large sets."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WORTH = 2**20  # multiplications from which on the detour costs nothing


def row_products(
    x: Tensor,  # (a, d)
    y: Tensor,  # (b, d)
    bias: Tensor | None = None,  # (b,)
) -> Tensor:  # (a, b)
    """x y^T + bias.

    In float32 on a CPU as a convolution of 1 x 1 whose pixels are the rows of x, which oneDNN
    computes: MKL, behind PyTorch's matrix products, does without AVX-512 on processors of AMD and
    takes twice as long there.
    """
    if _by_convolution(x, y):
        images = math.gcd(len(x), 16)  # PyTorch leaves fewer than 16 to MKL on one thread
        pixels = x.contiguous().view(images, -1, 1, x.shape[1]).permute(0, 3, 1, 2)
        products = F.conv2d(pixels, y[:, :, None, None], bias)
        return products.permute(0, 2, 3, 1).reshape(len(x), len(y))
    return x @ y.mT if bias is None else torch.addmm(bias, x, y.mT)


def _by_convolution(x: Tensor, y: Tensor) -> bool:
    if x.dtype != torch.float32 or x.device.type != "cpu" or len(x) * y.numel() < _WORTH:
        return False
    # Convolutions may be allowed to round more than matrix products are.
    rounding = getattr(torch.backends.mkldnn, "conv", None)
    exact = getattr(rounding, "fp32_precision", "none") in ("none", "ieee")
    return exact and torch.backends.mkldnn.is_available()
