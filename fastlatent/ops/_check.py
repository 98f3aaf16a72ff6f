"""Argument checks; each failure is one sentence naming op, argument and expectation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(
    op: str, name: str, value: object, dim: int | None, dtypes: Sequence[torch.dtype]
) -> None:
    """`value` is a tensor of `dim` dimensions (None: at least one) and one of these dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = ", ".join(_word(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} must have dtype {names}; got {_word(value.dtype)}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a strided tensor; got layout {value.layout}")
    if dim is None and value.dim() == 0:
        raise ValueError(f"{op}: {name} must have at least one dimension; got a scalar")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{op}: {name} must have {dim} dimensions; got shape {tuple(value.shape)}")


def alike(op: str, **tensors: Tensor) -> None:
    """All tensors share the dtype and the device of the first."""
    (first, a), *rest = tensors.items()
    for name, b in rest:
        if b.dtype != a.dtype:
            raise TypeError(
                f"{op}: {name} must have the dtype of {first}, {_word(a.dtype)}; "
                f"got {_word(b.dtype)}"
            )
        if b.device != a.device:
            raise ValueError(
                f"{op}: {name} must be on the device of {first}, {a.device}; got {b.device}"
            )


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    """`value` is one of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"{op}: {name} must be one of {words}; got {shown(value)}")


def whole(op: str, name: str, value: Any, least: int, most: int, expectation: str) -> int:
    """`value` as an int of least ... most: an integer of Python, NumPy or PyTorch, but no bool."""
    found = value if isinstance(value, int) else _integer(value)
    if isinstance(value, bool) or found is None or not least <= found <= most:
        raise ValueError(f"{op}: {name} must be {expectation}; got {shown(value)}")
    return found


def real(value: Any) -> float | None:
    """`value` as a float: a real number of Python, NumPy or PyTorch, but no bool; else None."""
    if isinstance(value, float):
        return value
    if isinstance(value, np.ndarray | Tensor):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return None
    if isinstance(value, np.complexfloating):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def flag(op: str, name: str, value: Any) -> bool:
    """`value` as a bool, which 0 and 1 are too."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | np.bool_) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False; got {shown(value)}")


def floating_dtype(op: str, name: str, value: object) -> None:
    """`value` is a floating dtype that ops take."""
    if not isinstance(value, torch.dtype) or value not in FLOATING:
        raise TypeError(f"{op}: {name} must be a floating dtype; got {shown(value)}")


def device(op: str, name: str, value: object) -> None:
    """`value` names a device, or is None."""
    if value is None or isinstance(value, torch.device):
        return
    try:
        if isinstance(value, bool):
            raise TypeError
        torch.device(value)  # type: ignore[call-overload]
    except (TypeError, RuntimeError, ValueError, OverflowError):
        raise TypeError(f"{op}: {name} must be a device; got {shown(value)}") from None


def shown(value: object) -> str:
    """`value` in a few words, on one line."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)}"
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number beyond 10^30" if value > 0 else "a number below -10^30"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _integer(value: Any) -> Any:
    """`value` as an int, or as the symbol of one; else None."""
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, Tensor):
        integral = not (
            value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        )
    else:
        integral = isinstance(value, np.integer | np.ndarray) and value.dtype.kind in "iu"
    return int(value) if integral and value.ndim == 0 else None


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
