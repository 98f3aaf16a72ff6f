"""What every benchmark shares: nothing is reported while the contract test is red."""

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from fastlatent.ops import _load

ROOT = Path(__file__).resolve().parent.parent


@cache
def contract_holds(op: str) -> bool:
    """Runs the values and gradients of the op's contract test."""
    chosen = f"(test_values or test_gradients or test_surrogate) and {op}"
    test = [sys.executable, "-m", "pytest", "-q", "-x", "tests/test_ops.py", "-k", chosen]
    return subprocess.run(test, cwd=ROOT, capture_output=True).returncode == 0


@pytest.fixture
def compare(benchmark, request):
    """compare(op, what, size, implementation, run): one timed row of the group "what, size"."""

    def time(
        op: str,
        what: str,
        size: str,
        implementation: str,
        run,
        rounds: int = 15,
        share: float = 1.0,  # of the work that `run` does; times are extrapolated to all of it
    ) -> None:
        if not contract_holds(op):
            pytest.fail(f"the contract test of {op} is red: nothing is reported")
        benchmark.group = f"{what}, {size}"
        benchmark.extra_info.update(
            op=op, what=what, size=size, implementation=implementation, share=share
        )
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=min(3, rounds - 1))

    return time


def pytest_benchmark_update_machine_info(config, machine_info):
    processor = machine_info.get("cpu", {}).get("brand_raw", platform.processor())
    core = _load.core()
    machine_info.clear()
    machine_info.update(
        processor=processor,
        threads=torch.get_num_threads(),
        instructions=core.isa(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
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
    command = "make bench" if every else f"pytest {' '.join(f'benchmarks/{f}' for f in files)}"
    output_json.clear()
    output_json.update(commit, machine=machine, command=command, rows=rows)
