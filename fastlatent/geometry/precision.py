"""Keeping float32 what it is: differences of outputs along a curve cancel most of their digits."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_lock = threading.RLock()


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Matrix products and convolutions of float32 on that device type without TensorFloat-32,
    half types or autocast, whatever the process allows.

    Backward passes take the precision in force when they run: put them inside as well.
    """
    with torch.autocast(device, enabled=False), _lock, ExitStack() as stack:
        for whole, part in _settings(device):
            stack.enter_context(_exact(whole, part))
        yield


def _settings(device: str) -> list[tuple[Any, Any]]:
    backends = torch.backends
    if device == "cuda":
        return [(backends.cudnn, backends.cuda.matmul), (backends.cudnn, backends.cudnn.conv)]
    return [(backends.mkldnn, backends.mkldnn.matmul), (backends.mkldnn, backends.mkldnn.conv)]


@contextmanager
def _exact(whole: Any, part: Any) -> Iterator[None]:
    before = part.fp32_precision
    if before in ("none", "ieee"):
        yield
        return
    # What is read may be inherited; put back as a value of its own it would hide later changes.
    every = torch.backends.fp32_precision  # type: ignore[attr-defined]
    inherited = before in (whole.fp32_precision, every)
    part.fp32_precision = "ieee"
    try:
        yield
    finally:
        part.fp32_precision = "none" if inherited else before
