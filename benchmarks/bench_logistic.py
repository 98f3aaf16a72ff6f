"""Discretized logistics and their mixtures against the formulas that everybody pastes."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from fastlatent import ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from original_pixelcnn import pasted_log_prob, pasted_sample

COMPILED, COPY = "torch.compile", "copy of as many bytes"


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
        COMPILED: torch.compile(pasted, dynamic=False),
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
    memory = (c, k) == (3, 10) and n in (32, 256) and name in ("fastlatent", "eager", COMPILED)
    if memory:
        work()  # compiling takes memory too
    compare(OP, what, size_of(n, c), name, work, 30 if n <= 32 else 7, memory=memory)


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


def pasted_bins(params, uniforms):
    return ((pasted_sample(params, uniforms) + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference", "eager", COMPILED])
@pytest.mark.parametrize("kind", ["quantized", "continuous"])
@pytest.mark.parametrize("given", [True, False], ids=["noise given", "noise drawn"])
def test_sampling(compare, device, name, kind, given):
    """One uniform chooses the component where PixelCNN++ adds Gumbel noise to all K logits."""
    n = IMAGES[device]
    _, params = pixels(n, 3, 10, device)
    ours = name.startswith("fastlatent")
    shape = (n, 1 + 3 if ours else 10 + 3, 32, 32)
    pasted = pasted_bins if kind == "quantized" else pasted_sample

    def noise():
        return torch.empty(shape, device=device).uniform_(1e-5, 1 - 1e-5)

    def fastlatent(params, uniforms):
        with ops.use("auto" if name == "fastlatent" else "torch"):
            return ops.discretized_logistic_mixture_sample(params, uniforms, kind)

    def drawing(params):
        return (fastlatent if ours else pasted)(params, noise())

    arguments = (params, noise()) if given else (params,)
    function = (fastlatent if ours else pasted) if given else drawing
    if name == COMPILED:
        function = torch.compile(function, dynamic=False)
    what = f"mixture, K = 10: {kind} sampling" + ("" if given else ", noise drawn")
    op = "discretized_logistic_mixture_bins" if kind == "quantized" else (
        "discretized_logistic_mixture_values"
    )  # fmt: skip
    compare(op, what, size_of(n, 3), name, partial(function, *arguments), 15)


POINTS = {  # of the params and of the images, how many times a call must read or write them
    "mean": (1, 4),
    "mean: forward + backward": (3, 8),
    "mode": (1, 1),
}


@pytest.mark.parametrize("what", POINTS)
@pytest.mark.parametrize("name", ["fastlatent", "eager", COMPILED, COPY])
def test_means(compare, copy_of, device, what, name):
    """Against their definitions in PyTorch, which the kernels follow step by step."""
    n = IMAGES[device]
    bins, params = pixels(n, 3, 10, device)
    op = f"discretized_logistic_mixture_{what.split(':')[0]}"
    function = getattr(ops, op)
    if name != "fastlatent":
        function = function.reference
    if name == COMPILED:
        function = torch.compile(function, dynamic=False)
    planes, images = POINTS[what]
    if name == COPY:
        work = copy_of(planes * params.nbytes + images * bins.nbytes)
    elif "backward" in what:
        params.requires_grad_(True)

        def work():
            torch.autograd.grad(function(params).sum(), params)
    else:
        work = partial(function, params)
    compare(op, f"mixture, K = 10: {what}", size_of(n, 3), name, work, 15)


@pytest.mark.parametrize("what", ["mean", "mode"])
@pytest.mark.parametrize("name", ["fastlatent", "eager", COMPILED])
def test_means_of_one(compare, device, what, name):
    n = IMAGES[device]
    here = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    mean = torch.rand((n, 3, 32, 32), **here)
    log_scale = torch.randn(mean.shape, **here) - 3
    op = f"discretized_logistic_{what}"
    function = getattr(ops, op)
    if name != "fastlatent":
        function = function.reference
    if name == COMPILED:
        function = torch.compile(function, dynamic=False)
    work = partial(function, mean, log_scale)
    compare(op, f"one logistic: {what}", size_of(n, 3), name, work, 30)


def pasted_one(bins, mean, log_scale):
    """The difference of two sigmoids, with a floor under it."""
    inverse = (-log_scale.clamp(min=-7.0)).exp()
    k = bins.float()
    below = ((k / 256 - mean) * inverse).sigmoid()
    above = (((k + 1) / 256 - mean) * inverse).sigmoid()
    below, above = torch.where(k == 0, 0.0, below), torch.where(k == 255, 1.0, above)
    return (above - below + 1e-7).log()


@pytest.mark.parametrize("name", ["fastlatent", "fastlatent reference", "eager", COMPILED])
def test_single(compare, device, name):
    n = IMAGES[device]
    here = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    bins = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, **here)
    mean = torch.rand(bins.shape, **here).requires_grad_(True)
    log_scale = (torch.randn(bins.shape, **here) - 3).requires_grad_(True)
    rivals = {"eager": pasted_one, COMPILED: torch.compile(pasted_one, dynamic=False)}
    function = rivals.get(name, ops.discretized_logistic_log_prob)

    def run():
        with ops.use("torch" if name == "fastlatent reference" else "auto"):
            log_prob = function(bins, mean, log_scale)
        torch.autograd.grad(log_prob.sum(), (mean, log_scale))

    op = "discretized_logistic_log_prob"
    compare(op, "one logistic: forward + backward", size_of(n, 3), name, run, 30)
