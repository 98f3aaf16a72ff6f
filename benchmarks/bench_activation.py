"""ELU at the size of a Ladder VAE's last blocks, as a block runs it: what is kept is its value."""

import pytest
import torch
import torch.nn.functional as F

from fastlatent import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["fastlatent", "eager", "torch.compile"])
def test_elu(compare, device, name, dtype):
    if device == "cuda":
        pytest.skip("models take PyTorch's own there")
    shape = (64, 64, 32, 32)
    make = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=make, device=device, dtype=dtype).requires_grad_(True)
    grad = torch.ones_like(x)
    function = {
        "fastlatent": ops.elu,
        "eager": F.elu,
        "torch.compile": torch.compile(F.elu, dynamic=False),
    }[name]

    def run():
        torch.autograd.grad(function(x), x, grad)

    size = f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
    compare("elu", "elu forward + backward", size, name, run, 15)
