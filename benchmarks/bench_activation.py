"""Activations at the size of a Ladder VAE's last blocks, as a block runs them."""

import pytest
import torch
import torch.nn.functional as F

from fastlatent.ops import OPS, activation
from fastlatent.ops._register import public_function

ACTIVATIONS = [
    name
    for name, op in OPS.items()
    if op.reference.__module__ == activation.__name__ and not name.endswith("_backward")
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["fastlatent", "eager", "torch.compile"])
@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activation(compare, device, op, name, dtype):
    if device == "cuda" and OPS[op].triton is None:
        pytest.skip("models take PyTorch's own there")
    shape = (64, 64, 32, 32)
    make = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=make, device=device, dtype=dtype).requires_grad_(True)
    grad = torch.ones_like(x)
    rival = getattr(F, op, OPS[op].reference)  # PyTorch's own, where it has one of that name
    function = {
        "fastlatent": public_function(op),
        "eager": rival,
        "torch.compile": torch.compile(rival, dynamic=False),
    }[name]

    def run():
        torch.autograd.grad(function(x), x, grad)

    size = f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
    compare(op, f"{op} forward + backward", size, name, run, 15)
