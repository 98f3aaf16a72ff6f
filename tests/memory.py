"""How much memory something takes, as the allocators or Linux count it."""

import ctypes
import gc
import os
import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile

PROCESS = Path("/proc/self")
needs_linux = pytest.mark.skipif(
    not os.access(PROCESS / "clear_refs", os.W_OK), reason="no /proc of Linux"
)


def allocated(run: Callable[[], object]) -> int:
    """Bytes of tensors, and of what Python and NumPy allocate, that were held at most in `run`.

    Beyond those held before, and whatever the heap keeps of what is free again: other tests in the
    same process change nothing. At most, since the two peaks need not come at once.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        tracemalloc.start()
        try:
            run()
            objects = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return objects + max(0, *accumulate((change for _, change in sorted(changes)), initial=0))


def peak(run: Callable[[], object]) -> int:
    """Bytes that the process held at most while it ran, beyond those it held before.

    Pages of files count, and so do holes in the heap: what `allocated` can tell, it tells better.
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
