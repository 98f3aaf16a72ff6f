"""Launches of Triton kernels with no GPU at hand: Triton's own path as far as the driver.

The driver here answers as a GPU of the chosen architecture would, launches nothing, and keeps the
machine code of what it was to launch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

ARCHITECTURES = (80, 90, 100)
SHARED_MEMORY = 99 * 1024  # bytes a block may use on sm_86 and sm_89, the least of sm_80 to sm_100


class Launch(NamedTuple):
    kernel: str
    cubin: bytes
    grid: tuple[int, int, int]


class _Utils:
    def __init__(self) -> None:
        self.loaded: list[tuple[str, bytes]] = []

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY, "warpSize": 32, "multiprocessor_count": 108}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple:
        self.loaded.append((name, cubin))
        function = len(self.loaded) - 1
        return 0, function, 32, 0, 1024  # module, function, registers, spills, most threads

    def unload_module(self, module: int) -> None:
        pass


class _Driver:
    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.utils = _Utils()
        self.launches: list[Launch] = []

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            self.launches.append(Launch(*self.utils.loaded[function], (x, y, z)))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return id(self)  # what Triton compiled for another device is not taken for this one

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def launching_nothing(architecture: int) -> Iterator[list[Launch]]:
    """Within, Triton compiles for that architecture; the list tells what was to be launched."""
    before, fake = driver._active, _Driver(architecture)
    driver.set_active(fake)
    try:
        yield fake.launches
    finally:
        driver._active = before
