"""Binarisation, packing and second moments against what people write today."""

from timeit import timeit

import numpy as np
import pytest
import torch

from fastlatent import ops

CODES, BITS = 60_000, 1_500  # CelebA's code length, MNIST's number of images


def straight_through(x):
    """The usual straight-through binarisation, in eager PyTorch."""
    t = torch.tanh(x)
    hard = torch.where(t >= 0, 1.0, -1.0)
    error = (t - hard).abs().mean(-1).detach()
    return t + (hard - t).detach(), error


def binarizers():
    def reference(x):
        with ops.use("torch"):
            return ops.binarize(x)

    return {
        "fastlatent": ops.binarize,
        "eager": straight_through,
        "torch.compile": torch.compile(straight_through),
        "fastlatent reference": reference,
    }


@pytest.mark.parametrize("name", binarizers())
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_binarize(compare, name, direction):
    x = torch.randn(4096, 2048, requires_grad=direction != "forward")
    upstream = torch.randn(4096, 2048)
    function = binarizers()[name]

    def run():
        codes, _ = function(x)
        if direction != "forward":
            torch.autograd.grad(codes, x, upstream)

    compare("binarize", f"binarize {direction}", "4096 x 2048, float32", name, run)


@pytest.fixture(scope="module")
def codes():
    make = torch.Generator().manual_seed(0)
    return ops.binarize(torch.randn(CODES, BITS, generator=make))[0]


MOMENTS = {
    "fastlatent": (ops.pack_bits, lambda words: ops.binary_moments(words, BITS)),
    "fastlatent from float32 codes": (
        torch.clone,
        lambda codes: ops.binary_moments(ops.pack_bits(codes), BITS),
    ),
    "torch.mm float32": (torch.clone, lambda codes: codes.t() @ codes),
    "torch.mm bfloat16": (torch.Tensor.bfloat16, lambda codes: codes.t() @ codes),
    "torch._int_mm int8": (
        lambda codes: (codes.t().to(torch.int8).contiguous(), codes.to(torch.int8)),
        lambda pair: torch._int_mm(*pair),
    ),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_binary_moments(compare, codes, name):
    """Each rival starts from codes in the form that suits it best, conversion not counted."""
    convert, product = MOMENTS[name]
    part = convert(codes[: CODES // 100])
    expected = 100 * timeit(lambda: product(part), number=1)
    if expected > 30:
        pytest.skip(f"no kernel for this processor: it would take {expected:.0f} s a call")
    form = convert(codes)
    rounds = 15 if "fastlatent" in name else 5
    size = f"{CODES} x {BITS}"
    compare("binary_moments", "binary_moments", size, name, lambda: product(form), rounds)


@pytest.mark.parametrize("name", ["fastlatent", "numpy.packbits", "fastlatent reference"])
def test_pack_bits(compare, codes, name):
    array = codes.numpy()

    def reference():
        with ops.use("torch"):
            return ops.pack_bits(codes)

    run = {
        "fastlatent": lambda: ops.pack_bits(codes),
        "numpy.packbits": lambda: np.packbits(array > 0, axis=1, bitorder="little"),
        "fastlatent reference": reference,
    }[name]
    compare("pack_bits", "pack_bits", f"{CODES} x {BITS}, float32", name, run, 5)


@pytest.mark.parametrize("name", ["fastlatent", "numpy.unpackbits", "fastlatent reference"])
def test_unpack_bits(compare, codes, name):
    words = ops.pack_bits(codes)
    array = words.numpy().view("uint8")

    def reference():
        with ops.use("torch"):
            return ops.unpack_bits(words, BITS)

    def numpy():
        bits = np.unpackbits(array, axis=1, count=BITS, bitorder="little")
        return 2 * bits.astype(np.float32) - 1

    run = {
        "fastlatent": lambda: ops.unpack_bits(words, BITS),
        "numpy.unpackbits": numpy,
        "fastlatent reference": reference,
    }[name]
    compare("unpack_bits", "unpack_bits", f"{CODES} x {BITS}, float32", name, run, 5)
