"""The elementary functions of csrc/simd.h keep their stated errors on every instruction set."""

from functools import cache
from time import perf_counter

import mpmath
import numpy as np
import pytest
import torch

from fastlatent.ops import _load

try:
    core = _load.core()
except _load.CoreMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

# Largest error in units of the last place of the result, as csrc/simd.h states it.
STATED = {
    "exp": 1,
    "expm1": 2,
    "log": 1,
    "log1p": 2,
    "tanh": 3,
    "sigmoid": 3,
    "softplus": 2,
    "power": 2,
    "power_expm1": 4,
    "mean_decay": 2,
    "fma": 2,
}
MPMATH = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "power": mpmath.exp,
    "power_expm1": mpmath.expm1,
    "mean_decay": lambda x: -mpmath.expm1(-x) / x if x else mpmath.mpf(1),
    "fma": lambda x: x * x - x,
}
NUMPY = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": lambda x: np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-np.abs(x))),
    "softplus": lambda x: np.logaddexp(0, x),
    "power": np.exp,
    "power_expm1": np.expm1,
    "mean_decay": lambda x: np.where(x > 0, -np.expm1(-x) / np.where(x > 0, x, 1), 1),
    "fma": lambda x: x * x - x,
}


def domain(function: str, dtype: type) -> tuple[float, float]:
    """Where the stated error holds, both ends excluded."""
    if function.startswith("power"):
        return (-87.3, 88.0) if dtype is np.float32 else (-708.3, 709.0)
    # An error-free product needs room for its parts.
    inner = {
        "log": (0.0, np.inf),
        "log1p": (-1.0, np.inf),
        "mean_decay": (0.0, 1.0),
        "fma": (-4, 4),
    }
    return inner.get(function, (-np.inf, np.inf))


@cache
def arguments(function: str, dtype: type) -> np.ndarray:
    """Random bit patterns over all finite numbers, and a dense cover where the functions bend."""
    rng = np.random.default_rng(0)
    integer, count = (np.int32, 200_000) if dtype is np.float32 else (np.int64, 4_000)
    info = np.iinfo(integer)
    anywhere = rng.integers(info.min, info.max, count, integer, endpoint=True).view(dtype)
    near = rng.uniform(-100, 100, count).astype(dtype)
    small = rng.uniform(-3, 3, count).astype(dtype)
    x = np.concatenate(
        [anywhere, near, small, np.array([0.5, 1.0, 2.0, -0.5, 88.7, -103.9], dtype)]
    )
    lowest, highest = domain(function, dtype)
    x = x[np.isfinite(x) & (x > lowest) & (x < highest)]
    return x[np.abs(x) > 1e-15] if function == "fma" else x


@cache
def truth(function: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The exact values as pairs of doubles (head, tail)."""
    x = arguments(function, dtype)
    if dtype is np.float32:
        with np.errstate(all="ignore"):
            head = NUMPY[function](x.astype(np.float64))
        return head, np.zeros_like(head)
    with mpmath.workprec(200):
        exact = [MPMATH[function](mpmath.mpf(float(v))) for v in x]
        head = np.array([float(v) for v in exact])
        tail = [float(v - h) if np.isfinite(h) else 0.0 for v, h in zip(exact, head, strict=True)]
    return head, np.array(tail)


def evaluate(function: str, x: np.ndarray) -> np.ndarray:
    out = torch.empty(x.shape, dtype=torch.from_numpy(x).dtype)
    core.simd_probe(function, torch.from_numpy(x), out)
    return out.numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", STATED)
def test_error_stays_below_the_stated_one(function, dtype, kernel_isa):
    x = arguments(function, dtype)
    head, tail = truth(function, dtype)
    got = evaluate(function, x)
    with np.errstate(over="ignore"):
        finite = np.isfinite(head.astype(dtype))
    unit = np.spacing(np.abs(head[finite].astype(dtype))).astype(np.float64)
    error = np.abs(got[finite].astype(np.float64) - head[finite] - tail[finite]) / unit
    worst = error.argmax()
    assert error[worst] <= STATED[function], (
        f"{function}({x[finite][worst]!r}) is {error[worst]:.2f} units off on {kernel_isa}"
    )
    overflow = ~finite & (np.abs(head) > 2 * float(np.finfo(dtype).max))
    assert np.isinf(got[overflow]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values_are_those_of_the_c_library(dtype, kernel_isa):
    inf, nan = np.inf, np.nan
    x = np.array([inf, -inf, nan, 0.0, -0.0, -1.0, -2.0], dtype)
    with np.errstate(all="ignore"):
        for function in ("exp", "expm1", "log", "log1p", "tanh"):
            want = getattr(np, function)(x)
            got = evaluate(function, x)
            np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=function)
            zeros = want == 0
            assert (np.signbit(got[zeros]) == np.signbit(want[zeros])).all(), function
    np.testing.assert_array_equal(evaluate("sigmoid", x[:4]), np.array([1, 0, nan, 0.5], dtype))
    np.testing.assert_allclose(evaluate("softplus", x[:3]), np.array([inf, 0, nan], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_is_zero_far_below_and_passes_nan(dtype, kernel_isa):
    got = evaluate("power", np.array([-np.inf, -1e30, -800.0, np.nan, 0.0], dtype))
    np.testing.assert_array_equal(got, np.array([0, 0, 0, np.nan, 1], dtype))


def test_exp_of_doubles_costs_no_more_than_a_few_powers(kernel_isa):
    """Both are one polynomial of 13 terms, whose constants no call may compute."""
    x = np.linspace(-10, 10, 20_000)

    def seconds(function: str) -> float:
        start = perf_counter()
        evaluate(function, x)
        return perf_counter() - start

    pairs = [(seconds("exp"), seconds("power")) for _ in range(20)]
    exp, power = map(min, zip(*pairs, strict=True))
    assert exp < 1.7 * power


def test_an_unknown_function_is_named():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="no function gamma"):
        core.simd_probe("gamma", x, torch.empty(3))
