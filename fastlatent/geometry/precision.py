"""Keeping float32 what it is: differences of outputs along a curve cancel most of their digits.

And keeping derivatives what they are, in a process that has turned them off.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastlatent.untouched.running import PROCESS


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Matrix products and convolutions of float32 on that device type without TensorFloat-32,
    half types or autocast, whatever the process allows, and outside of inference mode.

    Backward passes take the precision in force when they run: put them inside as well.
    """
    with _differentiable(), torch.autocast(device, enabled=False), PROCESS, ExitStack() as stack:
        for whole, part in _settings(device):
            stack.enter_context(_exact(whole, part))
        yield


@contextmanager
def _differentiable() -> Iterator[None]:
    """Outside of inference mode, where operators are others and have no derivatives.

    Raises RuntimeError for those who want gradients there: their own operations record none.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    if torch.is_grad_enabled():
        raise RuntimeError(
            "inference mode records no gradients, which are needed here; use torch.no_grad() "
            "instead of torch.inference_mode()"
        )
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention out of products and a softmax: what replaces it has no forward-mode derivative."""
    with PROCESS, sdpa_kernel(SDPBackend.MATH):
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _settings(device: str) -> list[tuple[Any, Any]]:
    backends: Any = torch.backends
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
