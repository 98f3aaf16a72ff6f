"""The mixture of discretized logistics against the formula that everybody pastes."""

import sys
from pathlib import Path

import pytest
import torch

from fastlatent import ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from original_pixelcnn import pasted_log_prob


def pasted(bins, params):
    """log P of each image."""
    return pasted_log_prob(bins.float() / 127.5 - 1, params)[0].sum((1, 2))


def implementations():
    def reference(bins, params):
        with ops.use("torch"):
            return ops.discretized_logistic_mixture_log_prob(bins, params)

    return {
        "fastlatent": ops.discretized_logistic_mixture_log_prob,
        "eager": pasted,
        "torch.compile": torch.compile(pasted, dynamic=False),
        "fastlatent reference": reference,
    }


def pixels(n, c, k, size=32):
    make = torch.Generator().manual_seed(0)
    bins = torch.randint(0, 256, (n, c, size, size), generator=make, dtype=torch.uint8)
    planes = k * (10 if c == 3 else 1 + 2 * c)
    params = torch.randn(n, planes, size, size, generator=make)
    blocks = params[:, k:].unflatten(1, (c, -1, k))
    blocks[:, :, 0] *= 0.5
    blocks[:, :, 1] -= 3
    return bins, params


SHAPES = [(32, 3, 10), (32, 3, 5), (32, 3, 20), (1, 3, 10), (256, 3, 10), (32, 1, 10)]
OP = "discretized_logistic_mixture_log_prob"


def size_of(n, c):
    return f"{n} x {c} x 32 x 32, float32"


@pytest.mark.parametrize("shape", SHAPES, ids="n{0[0]} c{0[1]} k{0[2]}".format)
@pytest.mark.parametrize("name", implementations())
def test_value_and_gradient(compare, shape, name):
    n, c, k = shape
    bins, params = pixels(n, c, k)
    params.requires_grad_(True)
    function = implementations()[name]

    def run():
        torch.autograd.grad(function(bins, params).sum(), params)

    what = f"mixture, K = {k}, n = {n}, c = {c}: forward + backward"
    compare(OP, what, size_of(n, c), name, run, 30 if n <= 32 else 7)


@pytest.mark.parametrize("name", implementations())
def test_value(compare, name):
    bins, params = pixels(32, 3, 10)
    function = implementations()[name]
    compare(
        OP, "mixture, K = 10: forward", size_of(32, 3), name, lambda: function(bins, params), 30
    )


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
def test_channels_last(compare, name):
    bins, params = (x.to(memory_format=torch.channels_last) for x in pixels(32, 3, 10))
    params.requires_grad_(True)
    function = implementations()[name]

    def run():
        torch.autograd.grad(function(bins, params).sum(), params)

    what = "mixture, K = 10, channels_last: forward + backward"
    compare(OP, what, size_of(32, 3), name, run, 15)


def test_bandwidth(compare):
    """Reading the parameters and writing as much: what no kernel can be faster than."""
    _, params = pixels(32, 3, 10)
    gradient = torch.empty_like(params)
    what = "mixture, K = 10, n = 32, c = 3: forward + backward"
    compare(OP, what, size_of(32, 3), "copy of the parameters", lambda: gradient.copy_(params), 30)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
@pytest.mark.parametrize("kind", ["quantized", "continuous"])
def test_sampling(compare, name, kind):
    _, params = pixels(32, 3, 10)
    uniforms = torch.rand(32, 4, 32, 32)

    def run():
        with ops.use("auto" if name == "fastlatent" else "torch"):
            ops.discretized_logistic_mixture_sample(params, uniforms, kind)

    what = f"mixture, K = 10: {kind} sampling"
    op = "discretized_logistic_mixture_bins" if kind == "quantized" else (
        "discretized_logistic_mixture_values"
    )  # fmt: skip
    compare(op, what, size_of(32, 3), name, run, 15)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
def test_single(compare, name):
    make = torch.Generator().manual_seed(0)
    bins = torch.randint(0, 256, (32, 3, 32, 32), generator=make, dtype=torch.uint8)
    mean = torch.rand(bins.shape, generator=make, requires_grad=True)
    log_scale = (torch.randn(bins.shape, generator=make) - 3).requires_grad_(True)

    def run():
        with ops.use("auto" if name == "fastlatent" else "torch"):
            log_prob = ops.discretized_logistic_log_prob(bins, mean, log_scale)
        torch.autograd.grad(log_prob.sum(), (mean, log_scale))

    op = "discretized_logistic_log_prob"
    compare(op, "one logistic: forward + backward", size_of(32, 3), name, run, 30)
