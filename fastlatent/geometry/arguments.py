"""Argument checks; each failure is one sentence naming function, argument and expectation."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def check_whole(name: str, word: str, value: Any, least: int) -> None:
    """A whole number from `least` up."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: {word} must be a whole number, at least {least}; got {value!r}")


def check_share(name: str, word: str, value: Any) -> None:
    """A number between 0 and 1, both excluded."""
    if not isinstance(value, Real) or not 0 < value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}: {word} must be between 0 and 1; got {value!r}")


def check_tensor(name: str, word: str, value: object, axes: str) -> None:
    """A float32 or float64 tensor with as many dimensions as `axes` names, such as "(n, d)"."""
    if not isinstance(value, Tensor) or value.dtype not in DTYPES:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: {word} must be a float32 or float64 tensor; got {got}")
    if value.dim() != axes.count(",") + 1:
        raise ValueError(f"{name}: {word} must be {axes}; got shape {tuple(value.shape)}")


def check_finite(name: str, word: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise ValueError(f"{name}: {word} must be finite")


def check_pair(name: str, start: Tensor, end: Tensor) -> None:
    """Two tensors (n, d) of one kind; their values are not looked at."""
    check_tensor(name, "start", start, "(n, d)")
    check_tensor(name, "end", end, "(n, d)")
    if start.shape != end.shape:
        raise ValueError(
            f"{name}: start and end must both be (n, d); got {tuple(start.shape)} and "
            f"{tuple(end.shape)}"
        )
    if start.dtype != end.dtype or start.device != end.device:
        raise ValueError(f"{name}: start and end must have one dtype and be on one device")


def check_ends(name: str, start: Tensor, end: Tensor) -> None:
    """Two finite tensors (n, d) of one kind."""
    check_pair(name, start, end)
    check_finite(name, "start", start)
    check_finite(name, "end", end)


def check_spans(name: str, spans: Any) -> None:
    """Increasing whole numbers from 1 up, at least one."""
    whole = isinstance(spans, Sequence) and all(isinstance(count, Integral) for count in spans)
    if not whole or list(spans) != sorted(set(spans)) or len(spans) == 0 or spans[0] < 1:
        raise ValueError(f"{name}: spans must be increasing numbers from 1 up; got {spans!r}")
