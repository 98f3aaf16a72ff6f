"""What all tests share: the cores, and where the real data lies."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # read when torch is imported, here and in the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that FASTLATENT_DATA names; tests that need it skip without."""
    root = os.environ.get("FASTLATENT_DATA")
    if not root:
        pytest.skip("FASTLATENT_DATA is not set")
    return Path(root)


@pytest.fixture
def use_isa() -> Iterator[Callable[[str], None]]:
    """use_isa(name): the instruction set of C++ kernels for one test; "none" sets nothing."""
    from fastlatent.ops import _load  # imports torch, which reads the number of threads

    before: list[str] = []

    def use(name: str) -> None:
        if name != "none":
            before.append(_load.core().isa())
            _load.core().use_isa(name)

    yield use
    if before:
        _load.core().use_isa(before[0])


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Classifiers that tests train are kept for the session, and apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTLATENT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
