"""Binarisation, packing and second moments against what people write today.

A copy of as many bytes shows what memory alone needs.
"""

from functools import partial
from timeit import timeit

import numpy as np
import pytest
import torch

from fastlatent import ops

CODES, BITS = 60_000, 1_500  # CelebA's code length, MNIST's number of images
ROWS, WIDTH = {"cpu": 4_096, "cuda": 65_536}, 2_048  # of what is binarised
COPY = "copy of as many bytes"


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


@pytest.mark.parametrize("name", [*binarizers(), COPY])
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
def test_binarize(compare, copy_of, device, name, direction):
    rows, backward = ROWS[device], direction != "forward"
    x = torch.randn(rows, WIDTH, device=device, requires_grad=backward)
    upstream = torch.randn(rows, WIDTH, device=device)

    def run(function):
        codes, _ = function(x)
        if backward:
            torch.autograd.grad(codes, x, upstream)

    if name == COPY:
        work = copy_of((5 if backward else 2) * x.nbytes)
    else:
        work = partial(run, binarizers()[name])
    compare("binarize", f"binarize {direction}", f"{rows} x {WIDTH}, float32", name, work)


@pytest.fixture(scope="module")
def codes(device):
    make = torch.Generator().manual_seed(0)
    return ops.binarize(torch.randn(CODES, BITS, generator=make).to(device))[0]


def on_both_sides(codes):
    """The factors of an int8 product: on CUDA in multiples of 8 and the left one transposed."""
    if codes.device.type == "cpu":
        return codes.t().to(torch.int8).contiguous(), codes.to(torch.int8)
    padded = torch.nn.functional.pad(codes.to(torch.int8), (0, -codes.shape[1] % 8))
    left = padded.t().contiguous()
    return left, left.t()


WIDENED = "torch.mm bfloat16 to float32"  # exact, on CUDA only
MOMENTS = {
    "fastlatent": (ops.pack_bits, lambda words: ops.binary_moments(words, BITS)),
    "fastlatent from float32 codes": (
        torch.clone,
        lambda codes: ops.binary_moments(ops.pack_bits(codes), BITS),
    ),
    "torch.mm float32": (torch.clone, lambda codes: codes.t() @ codes),
    "torch.mm bfloat16": (torch.Tensor.bfloat16, lambda codes: codes.t() @ codes),
    WIDENED: (
        torch.Tensor.bfloat16,
        lambda codes: torch.mm(codes.t(), codes, out_dtype=torch.float32),
    ),
    "torch._int_mm int8": (on_both_sides, lambda pair: torch._int_mm(*pair)),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_binary_moments(compare, codes, device, name):
    """Each rival starts from codes in the form that suits it best, conversion not counted."""
    if name == WIDENED and device == "cpu":
        pytest.skip("PyTorch has it on CUDA only")
    convert, product = MOMENTS[name]
    if device == "cpu":
        part = convert(codes[: CODES // 100])
        expected = 100 * timeit(lambda: product(part), number=1)
        if expected > 30:
            pytest.skip(f"no kernel for this processor: it would take {expected:.0f} s a call")
    form = convert(codes)
    rounds = 15 if "fastlatent" in name else 5
    size = f"{CODES} x {BITS}"
    compare("binary_moments", "binary_moments", size, name, lambda: product(form), rounds)


PACKING = ["fastlatent", "numpy.packbits", "fastlatent reference", COPY]


@pytest.mark.parametrize("name", PACKING)
def test_pack_bits(compare, copy_of, codes, name):
    def reference():
        with ops.use("torch"):
            return ops.pack_bits(codes)

    array = codes.cpu().numpy() if name.startswith("numpy") else None
    run = {
        "fastlatent": lambda: ops.pack_bits(codes),
        "numpy.packbits": lambda: np.packbits(array > 0, axis=1, bitorder="little"),
        "fastlatent reference": reference,
        COPY: copy_of(codes.nbytes + codes.nbytes // 32),
    }[name]
    compare("pack_bits", "pack_bits", f"{CODES} x {BITS}, float32", name, run, 5)


UNPACKING = ["fastlatent", "numpy.unpackbits", "fastlatent reference", COPY]


@pytest.mark.parametrize("name", UNPACKING)
def test_unpack_bits(compare, copy_of, codes, name):
    words = ops.pack_bits(codes)
    array = words.cpu().numpy().view("uint8") if name.startswith("numpy") else None

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
        COPY: copy_of(codes.nbytes + words.nbytes),
    }[name]
    compare("unpack_bits", "unpack_bits", f"{CODES} x {BITS}, float32", name, run, 5)
