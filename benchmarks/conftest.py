"""What every benchmark shares: a device, and that nothing is reported while its op is red there."""

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import pytest
import torch

from fastlatent.ops import OPS, _load

ROOT = Path(__file__).resolve().parent.parent
ON_CPU_ALONE = (  # rivals that know no other device
    "numpy.packbits",
    "numpy.unpackbits",
    "original procedure, NumPy",
    "prdc",
    "scipy.linalg.sqrtm",
    "scipy.linalg.sqrtm, as pytorch-fid",
    "torch-fidelity",
)


def pytest_addoption(parser):
    words = {"choices": ("cpu", "cuda"), "default": "cpu", "help": "where the benchmarks run"}
    parser.addoption("--device", **words)
    parser.addoption(
        "--contract",
        type=Path,
        help="JUnit XML of a contract test that has just run to its end, for it not to run again",
    )


def pytest_configure(config):
    if config.getoption("device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: PyTorch finds no CUDA device here")


@pytest.fixture(scope="session")
def device(request):
    return request.config.getoption("device")


def contract(device: str, *options: str, op: str = "") -> subprocess.CompletedProcess:
    """Runs the values and gradients of the contract test, of one op or of all."""
    chosen = f"(test_values or test_gradients or test_surrogate) and {device}"
    chosen += f" and {op}" if op else ""
    test = [sys.executable, "-m", "pytest", "-q", "-rfE", "tests/test_ops.py", "-k", chosen]
    return subprocess.run([*test, *options], cwd=ROOT, capture_output=True, text=True)


@cache
def outcomes(results: Path) -> list[tuple[str, str, str]]:
    """Op, device and outcome of each test in the JUnit XML of a contract test."""
    found = []
    for case in ElementTree.parse(results).iter("testcase"):
        op, device, *_ = (*case.get("name", "").partition("[")[2].rstrip("]").split("-"), "")
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "red" if bad else "skipped" if case.find("skipped") is not None else "green"
        found.append((op, device, outcome))
    return found


def green_in(results: Path, op: str, device: str) -> bool:
    """Whether tests of the op and of its gradient passed on that device, and none was red."""
    own = {
        outcome
        for name, where, outcome in outcomes(results)
        if name in (op, f"{op}_backward") and where == device
    }
    return "green" in own and "red" not in own


@cache
def red_together(device: str) -> list[str] | None:
    """What fails when all ops are tested in one run; None if that did not come to its end."""
    done = contract(device, "-n", "8")
    if done.returncode > 1:
        return None
    return [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]


@cache
def contract_holds(op: str, device: str, results: Path | None = None) -> bool:
    """Whether the op's contract test is green on that device, by the results of it if given.

    On CUDA kernels are compiled first, in several processes for all ops at once; a kernel that
    faults takes the others of its process with it, so what is red there is tested alone.
    """
    if results is not None:
        return green_in(results, op, device)
    if device == "cuda":
        red = red_together(device)
        if red is not None and not any(op in line for line in red):
            return True
    return contract(device, "-x", op=op).returncode == 0


@pytest.fixture
def compare(benchmark, device, request):
    """compare(op, what, size, implementation, run): one timed row of the group "what, size"."""

    def measure(
        op: str | None,  # whose contract test has to be green
        what: str,
        size: str,
        implementation: str,
        run,
        rounds: int = 15,
        share: float = 1.0,  # of the work that `run` does; times are extrapolated to all of it
        warmup: int = 3,
        iterations: int = 1,
        memory: bool = False,  # whether the row states what the work takes
    ) -> None:
        if device == "cuda" and implementation in ON_CPU_ALONE:
            pytest.skip(f"{implementation} runs on a CPU")
        if op is not None:
            check(op, device, implementation, request.config.getoption("contract"))
        benchmark.group = f"{what}, {size}"
        benchmark.extra_info.update(
            op=op, what=what, size=size, implementation=implementation, share=share
        )
        work, warmup = until_done(run, device), min(warmup, rounds - 1)
        if memory:
            benchmark.extra_info["MiB"] = peak(work, device)
        elif device == "cuda":  # which has kernels to load or compile, however few the rounds
            warmup = max(1, warmup)
        benchmark.pedantic(work, rounds=rounds, warmup_rounds=warmup, iterations=iterations)

    return measure


def check(op: str, device: str, implementation: str, results: Path | None) -> None:
    served = OPS[op].serving(device)
    ours = implementation.startswith("fastlatent") and "reference" not in implementation
    if ours and served.implementation == "torch":
        pytest.fail(f"{op} runs its PyTorch reference on {device}: {served.reason}")
    if not contract_holds(op, device, results):
        pytest.fail(f"the contract test of {op} is red on {device}: nothing is reported")


def until_done(run, device: str):
    """On a GPU a call returns before its work is done: a round lasts until the device is idle."""
    if device == "cpu":
        return run

    def waited():
        run()
        torch.cuda.synchronize()

    return waited


@pytest.fixture
def copy_of(device):
    """copy_of(count): a copy that reads and writes `count` bytes in all."""

    def make(count: int):
        @cache
        def memory():
            source = torch.rand(count // 8, device=device)
            return torch.empty_like(source), source

        return lambda: torch.Tensor.copy_(*memory())

    return make


def peak(run, device: str) -> int | None:
    """MiB that were held at most while it ran, beyond those held before: the device's own on a GPU.

    None where the system does not tell.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20)
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):  # what glibc keeps would not be counted
        ctypes.CDLL(None).malloc_trim(0)
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    done = threading.Event()
    before = most = int(status.read_text().split()[1])

    def watch():
        nonlocal most
        while not done.is_set():
            most = max(most, int(status.read_text().split()[1]))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run()
    finally:
        done.set()
        thread.join()
    return round((most - before) * page)


def pytest_benchmark_update_machine_info(config, machine_info):
    processor = machine_info.get("cpu", {}).get("brand_raw", platform.processor())
    core = _load.core()
    machine_info.clear()
    machine_info.update(
        processor=processor,
        threads=torch.get_num_threads(),
        instructions=core.isa(),
        gpu=torch.cuda.get_device_name() if config.getoption("device") == "cuda" else None,
        python=platform.python_version(),
        torch=torch.__version__,
        compiler=core.compiler,
    )


def row_of(benchmark: dict) -> dict:
    """Seconds for all of the work, where only a share of it was timed."""
    row, stats = dict(benchmark["extra_info"]), benchmark["stats"]
    share = row.pop("share")
    times = {k: stats[k] / share for k in ("min", "q1", "median", "q3")}
    return row | times | {"rounds": stats["rounds"]}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keeps what the table needs: seconds by quartile for each row, and the conditions."""
    rows = [row_of(row) for row in output_json["benchmarks"]]
    commit = {"commit": output_json["commit_info"].get("id"), "date": output_json["datetime"]}
    machine = output_json["machine_info"]
    files = sorted({Path(row["fullname"].split("::")[0]).name for row in output_json["benchmarks"]})
    every = files == sorted(path.name for path in Path(__file__).parent.glob("bench_*.py"))
    on_gpu = machine["gpu"] is not None
    command = f"pytest {' '.join(f'benchmarks/{f}' for f in files)}" + " --device cuda" * on_gpu
    if every:
        command = "make bench" + ' ARGS="--device cuda"' * on_gpu
    output_json.clear()
    output_json.update(commit, machine=machine, command=command, rows=rows)
