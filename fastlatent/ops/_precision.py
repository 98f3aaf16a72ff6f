"""Matrix products of kernels in full precision, whatever the process allows elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Keeps float32 products out of TensorFloat-32, half types and autocast; no gradients."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    with torch.no_grad(), torch.autocast(device, enabled=False), _lock:
        before = backend.matmul.fp32_precision
        if before in ("none", "ieee"):
            yield
            return
        # What is read may be inherited; put back as a value of its own it would hide later changes.
        whole = torch.backends.cudnn if device == "cuda" else torch.backends.mkldnn
        every = torch.backends.fp32_precision  # type: ignore[attr-defined]
        inherited = before in (whole.fp32_precision, every)
        backend.matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.matmul.fp32_precision = "none" if inherited else before
