"""What all tests share: the cores, and where the real data lies."""

import os
from collections.abc import Callable, Iterator
from functools import cache
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


@cache
def instruction_sets() -> list[str]:
    """Those that C++ kernels can run here; "none" where no C++ kernel serves."""
    from fastlatent.ops import _load

    if os.environ.get("FASTLATENT_IMPL", "auto") not in ("auto", "cpp"):
        return ["none"]
    try:
        return _load.core().isas()
    except _load.CoreMissing:
        return ["none"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", instruction_sets(), indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest, use_isa: Callable[[str], None]) -> str:
    """A test with `isa` runs once for each instruction set of C++ kernels; its name."""
    on_cpu = "device" not in request.fixturenames or request.getfixturevalue("device") == "cpu"
    if not on_cpu and request.param != instruction_sets()[-1]:
        pytest.skip("instruction sets concern the C++ kernels")
    use_isa(request.param)
    return request.param


@pytest.fixture
def kernel_isa(isa: str) -> str:
    """As `isa`, for what the references do not keep."""
    if isa == "none":
        pytest.skip("the references are not as accurate as the C++ kernels")
    return isa


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Classifiers that tests train are kept for the session, and apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTLATENT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
