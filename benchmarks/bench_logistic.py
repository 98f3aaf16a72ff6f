"""The mixture of discretized logistics against the formula that everybody pastes."""

import sys
from functools import partial
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


def pixels(n, c, k, device, size=32):
    here = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    bins = torch.randint(0, 256, (n, c, size, size), dtype=torch.uint8, **here)
    planes = k * (10 if c == 3 else 1 + 2 * c)
    params = torch.randn(n, planes, size, size, **here)
    blocks = params[:, k:].unflatten(1, (c, -1, k))
    blocks[:, :, 0] *= 0.5
    blocks[:, :, 1] -= 3
    return bins, params


SHAPES = {  # images, channels, components
    "cpu": [(32, 3, 10), (32, 3, 5), (32, 3, 20), (1, 3, 10), (256, 3, 10), (32, 1, 10)],
    "cuda": [(32, 3, 10), (256, 3, 10), (4096, 3, 10), (4096, 1, 10)],
}
EVERY = sorted({*SHAPES["cpu"], *SHAPES["cuda"]})
IMAGES = {"cpu": 32, "cuda": 4096}  # of all other rows
OP = "discretized_logistic_mixture_log_prob"
COPY = "copy of as many bytes"


def size_of(n, c):
    return f"{n} x {c} x 32 x 32, float32"


@pytest.mark.parametrize("shape", EVERY, ids="n{0[0]} c{0[1]} k{0[2]}".format)
@pytest.mark.parametrize("name", [*implementations(), COPY])
def test_value_and_gradient(compare, copy_of, device, shape, name):
    """Two calls read the parameters and the image twice, and write a gradient."""
    if shape not in SHAPES[device]:
        pytest.skip("a size for the other device")
    n, c, k = shape
    bins, params = pixels(n, c, k, device)
    params.requires_grad_(True)

    def run(function):
        torch.autograd.grad(function(bins, params).sum(), params)

    if name == COPY:
        work = copy_of(3 * params.nbytes + 2 * bins.nbytes)
    else:
        work = partial(run, implementations()[name])
    what = f"mixture, K = {k}, n = {n}, c = {c}: forward + backward"
    compare(OP, what, size_of(n, c), name, work, 30 if n <= 32 else 7)


@pytest.mark.parametrize("name", [*implementations(), COPY])
def test_value(compare, copy_of, device, name):
    n = IMAGES[device]
    bins, params = pixels(n, 3, 10, device)
    if name == COPY:
        work = copy_of(params.nbytes + bins.nbytes)
    else:
        work = partial(implementations()[name], bins, params)
    compare(OP, "mixture, K = 10: forward", size_of(n, 3), name, work, 30)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
def test_channels_last(compare, device, name):
    n = IMAGES[device]
    bins, params = (x.to(memory_format=torch.channels_last) for x in pixels(n, 3, 10, device))
    params.requires_grad_(True)
    function = implementations()[name]

    def run():
        torch.autograd.grad(function(bins, params).sum(), params)

    what = "mixture, K = 10, channels_last: forward + backward"
    compare(OP, what, size_of(n, 3), name, run, 15)


def test_bandwidth(compare, device):
    """Reading the parameters and writing as much: what one call for both could not beat."""
    n = IMAGES[device]
    _, params = pixels(n, 3, 10, device)
    gradient = torch.empty_like(params)
    what = f"mixture, K = 10, n = {n}, c = 3: forward + backward"
    compare(OP, what, size_of(n, 3), "copy of the parameters", lambda: gradient.copy_(params), 30)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
@pytest.mark.parametrize("kind", ["quantized", "continuous"])
def test_sampling(compare, device, name, kind):
    n = IMAGES[device]
    _, params = pixels(n, 3, 10, device)
    uniforms = torch.rand(n, 4, 32, 32, device=device)

    def run():
        with ops.use("auto" if name == "fastlatent" else "torch"):
            ops.discretized_logistic_mixture_sample(params, uniforms, kind)

    what = f"mixture, K = 10: {kind} sampling"
    op = "discretized_logistic_mixture_bins" if kind == "quantized" else (
        "discretized_logistic_mixture_values"
    )  # fmt: skip
    compare(op, what, size_of(n, 3), name, run, 15)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference"])
def test_single(compare, device, name):
    n = IMAGES[device]
    here = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    bins = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, **here)
    mean = torch.rand(bins.shape, **here).requires_grad_(True)
    log_scale = (torch.randn(bins.shape, **here) - 3).requires_grad_(True)

    def run():
        with ops.use("auto" if name == "fastlatent" else "torch"):
            log_prob = ops.discretized_logistic_log_prob(bins, mean, log_scale)
        torch.autograd.grad(log_prob.sum(), (mean, log_scale))

    op = "discretized_logistic_log_prob"
    compare(op, "one logistic: forward + backward", size_of(n, 3), name, run, 30)
