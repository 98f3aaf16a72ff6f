"""Argument checks; each failure is one sentence naming op, argument and expectation."""

from collections.abc import Sequence

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
    if value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"{op}: {name} must be one of {words}; got {value!r}")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
