"""How much memory something takes, as Linux counts it."""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

PROCESS = Path("/proc/self")
needs_linux = pytest.mark.skipif(
    not os.access(PROCESS / "clear_refs", os.W_OK), reason="no /proc of Linux"
)


def peak(run: Callable[[], object]) -> int:
    """Bytes that the process held at most while it ran, beyond those it held before.

    What was freed before is given back first: where it is used again it counts as new.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)
    (PROCESS / "clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """`VmRSS` is what the process has now, `VmHWM` the most since the last reset."""
    rows = (PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith(name))
