"""Products of rows are right to their rounding whichever library computes them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastlatent.metrics.products import row_products


class Calls(TorchDispatchMode):
    """Names of the operations of PyTorch that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__.partition(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("a", "b", "d", "dtype", "library"),
    [
        (128, 128, 64, torch.float32, "oneDNN"),
        (129, 200, 70, torch.float32, "oneDNN"),
        (784, 64, 130, torch.float32, "oneDNN"),
        (1, 2000, 1000, torch.float32, "oneDNN"),
        (128, 128, 63, torch.float32, "MKL"),
        (3, 2, 5, torch.float32, "MKL"),
        (128, 128, 64, torch.float64, "MKL"),
        (784, 64, 130, torch.float64, "MKL"),
        (3, 2, 5, torch.float64, "MKL"),
    ],
)
def test_row_products(a, b, d, dtype, library):
    make = torch.Generator().manual_seed(a + b + d)
    x, y = (torch.randn(n, 2 * d, generator=make).to(dtype)[:, ::2] for n in (a, b))
    bias = torch.randn(b, generator=make).to(dtype)
    if not torch.backends.mkldnn.is_available():
        library = "MKL"
    for shift in (None, bias):
        with Calls() as calls:
            got = row_products(x, y, shift)
        assert ("convolution" in calls.names) == (library == "oneDNN")
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
        with Calls() as calls:
            row_products(x, x)
        assert "convolution" not in calls.names
    finally:
        conv.fp32_precision = before
