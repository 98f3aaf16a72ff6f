"""What the comparisons of two sets of features share: checked arguments, numbers with errors."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

SEED = 12345  # of what is drawn from two sets, as in the published evaluation of the LBAE
_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain_arithmetic(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function without gradients, and in the precision it asks for under autocast too."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if not torch.cuda.is_available():
                return function(*args, **kwargs)
            with torch.autocast("cuda", enabled=False):
                return function(*args, **kwargs)

    return run


def check_sets(
    function: str,
    real: Tensor,  # (n, d)
    fake: Tensor,  # (m, d)
    least: int = 2,  # rows that each must have
) -> None:
    """Raises TypeError or ValueError unless these are two sets of finite features to compare."""
    for name, x in (("real", real), ("fake", fake)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{function}: {name} must be a floating-point tensor; got {got}")
        if x.dim() != 2:
            raise ValueError(
                f"{function}: {name} must be (samples, features); got shape {tuple(x.shape)}"
            )
        if x.shape[1] == 0:
            raise ValueError(f"{function}: {name} must have at least one feature; it has none")
        if len(x) < least:
            raise ValueError(f"{function}: {name} must have at least {least} rows; got {len(x)}")
    if fake.shape[1] != real.shape[1]:
        raise ValueError(
            f"{function}: fake must have as many features as real, {real.shape[1]}; "
            f"got {fake.shape[1]}"
        )
    if fake.device != real.device:
        raise ValueError(
            f"{function}: fake must be on the device of real, {real.device}; got {fake.device}"
        )
    for name, x in (("real", real), ("fake", fake)):
        # One pass without a mask: NaN and infinity show in the smallest and the largest value.
        if not torch.stack(x.aminmax()).isfinite().all():
            raise ValueError(f"{function}: {name} must be finite; it has NaN or infinite features")


def check_paired(function: str, real: Tensor, fake: Tensor) -> None:
    """Raises ValueError unless each row of fake can be made from that of real."""
    if len(real) != len(fake):
        raise ValueError(
            f"{function}: paired sets have as many rows as each other; got {len(real)} and "
            f"{len(fake)}"
        )


def check_counts(function: str, **counts: int) -> None:
    """Raises ValueError unless each is a positive integer."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{function}: {name} must be a positive integer; got {value!r}")


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """In which to multiply them: float64 for float64, else what float32 asks for."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else float32_products()


def float32_products() -> torch.dtype:
    """float32, or float64 where torch.set_float32_matmul_precision lets products be rounder."""
    return torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
