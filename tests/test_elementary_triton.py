"""The elementary functions of the Triton kernels, each by itself, over all numbers of float32."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 runs these without a GPU", allow_module_level=True)

import triton.language as tl  # noqa: E402

from fastlatent import ops  # noqa: E402
from fastlatent.ops.elementary_triton import exp  # noqa: E402

LARGEST = 88.72283  # e^x is finite up to here
SMALLEST = 2.0**-149  # the least positive number of float32
UNITS = 4  # of which the interpreter's own exp and exp2, which are NumPy's, take 2.5


@triton.jit
def exponentials(x, y, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y + place, exp(tl.load(x + place), tl.float32))


def all_of_float32(count):
    """Numbers of both signs, of every exponent, infinite and NaN among them."""
    bits = torch.linspace(-(2**31), 2**31 - 1, count, dtype=torch.float64).long()
    return bits.to(torch.int32).view(torch.float32)


def our_exp(x):
    y = torch.empty_like(x)
    exponentials[(1,)](x, y, BLOCK=len(x))
    return y


def unit(truth):
    """The distance to the next number of float32, at numbers in float64."""
    return (2.0 ** (truth.log2().floor() - 23)).clamp(min=SMALLEST)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of results that are infinite
@pytest.mark.parametrize(
    "x",
    [
        all_of_float32(2**18),
        torch.linspace(-110, LARGEST, 2**18),
        torch.linspace(88.3, LARGEST, 2**14),
        torch.linspace(-104, -87, 2**14),
        torch.linspace(-1e-3, 1e-3, 2**14),
    ],
    ids=["all", "where it is finite", "at the top", "subnormal results", "around zero"],
)
def test_exp_is_right_to_a_few_units(x):
    got, truth = our_exp(x).double(), x.double().exp()
    finite = (truth > 0) & (truth <= torch.finfo(torch.float32).max)
    off = (got - truth).abs()[finite] / unit(truth[finite])
    assert finite.any()
    assert off.max() <= UNITS
    torch.testing.assert_close(got[~finite], x.exp().double()[~finite], equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_exp_where_it_has_no_finite_value():
    x = torch.tensor([88.73, 89.0, 150.0, 1e30, 3.4e38, float("inf"), -1e38, float("-inf")])
    assert our_exp(x).tolist() == [float("inf")] * 6 + [0.0] * 2
    assert our_exp(torch.full((2,), float("nan"))).isnan().all()


@pytest.mark.parametrize("x", [88.4, 88.5, 88.72])
def test_activation_exp_is_finite_where_its_value_is(x):
    at = torch.full((1, 2, 3), x)
    y, dy = ops.activation_jvp(at, torch.ones(1, 4, 2, 3), "exp")
    torch.testing.assert_close(y, at.exp())
    torch.testing.assert_close(dy, at.exp().expand(1, 4, 2, 3))
