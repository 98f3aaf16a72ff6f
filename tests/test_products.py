"""Products of rows are right to their rounding whichever library computes them."""

import pytest
import torch

from fastlatent.metrics.products import _by_convolution, row_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("a", "b", "d"), [(128, 128, 64), (129, 200, 70), (784, 64, 130), (1, 2000, 1000), (3, 2, 5)]
)
def test_row_products(a, b, d, dtype):
    make = torch.Generator().manual_seed(a + b + d)
    x, y = (torch.randn(n, 2 * d, generator=make).to(dtype)[:, ::2] for n in (a, b))
    bias = torch.randn(b, generator=make).to(dtype)
    assert _by_convolution(x, y) == (dtype == torch.float32 and a * b * d >= 2**20)
    for shift in (None, bias):
        got = row_products(x, y, shift)
        sizes = x.double().abs() @ y.double().abs().mT
        truth = x.double() @ y.double().mT
        if shift is not None:
            truth, sizes = truth + shift, sizes + shift.abs()
        g = (d + 1) * torch.finfo(dtype).eps / 2  # the bound of sums in any order
        assert got.shape == (a, b)
        assert got.dtype == dtype
        assert ((got - truth).abs() <= g / (1 - g) * sizes + 1e-300).all()


def test_rounder_convolutions_are_not_taken():
    conv = getattr(torch.backends.mkldnn, "conv", None)
    if not hasattr(conv, "fp32_precision"):
        pytest.skip("this PyTorch has no such setting")
    x, before = torch.randn(1024, 64), conv.fp32_precision
    try:
        conv.fp32_precision = "bf16"
        assert not _by_convolution(x, x)
    finally:
        conv.fp32_precision = before
