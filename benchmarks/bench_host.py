"""Host time of calls on 8 x 16 numbers: what an op registered from Python costs by itself."""

import pytest
import torch

from fastlatent import ops
from fastlatent.ops import _load
from fastlatent.ops.bits import SURROGATES

CALLS = 1000


class ByHand(torch.autograd.Function):
    """The same kernels behind an autograd.Function: less host time, but wrong under transforms."""

    @staticmethod
    def forward(ctx, x):
        core = _load.core()
        codes, error = torch.empty_like(x), x.new_empty(len(x))
        core.binarize(x, SURROGATES.index("tanh"), codes, error, 1)
        ctx.save_for_backward(x)
        ctx.mark_non_differentiable(error)
        return codes, error

    @staticmethod
    def backward(ctx, grad, _):
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        _load.core().binarize_backward(grad, x, SURROGATES.index("tanh"), out, 1)
        return out


ROWS = {
    "aten: one tanh": torch.tanh,
    "fastlatent": lambda x: ops.binarize(x)[0],
    "autograd.Function": lambda x: ByHand.apply(x)[0],
}


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "forward + backward"])
@pytest.mark.parametrize("name", ROWS)
def test_host_time(compare, device, name, grad):
    if name == "autograd.Function" and device == "cuda":
        pytest.skip("it calls the C++ kernels")
    x = torch.randn(8, 16, device=device, requires_grad=grad)
    upstream = torch.randn(8, 16, device=device)
    function = ROWS[name]

    def run():
        for _ in range(CALLS):
            out = function(x)
            if grad:
                torch.autograd.grad(out, x, upstream)

    direction = "forward + backward" if grad else "forward"
    compare("binarize", f"host time of {CALLS} calls, {direction}", "8 x 16", name, run)
