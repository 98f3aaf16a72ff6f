"""The one command for a machine with a GPU, as far as a machine without one can judge it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
MOST = 540  # seconds for all


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The phases: name, seconds, command."""
    out = tmp_path_factory.mktemp("gpu")
    told = subprocess.run(
        ["bash", SCRIPT],
        env=os.environ | {"PLAN": "1", "OUT": str(out), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.splitlines()
    titles = [re.fullmatch(r"(\d+) s: (\w+)", line).groups() for line in lines[::2]]
    return {
        name: (int(limit), shlex.split(command))
        for (limit, name), command in zip(titles, lines[1::2], strict=True)
    }


def test_rows_of_benchmarks_take_at_most_four_minutes(plan):
    assert plan["rows"][0] <= 240


def test_no_phase_outlasts_the_nine_minutes():
    text = SCRIPT.read_text()
    end = int(re.search(r"^END=(\d+)", text, re.MULTILINE)[1])
    grace = int(re.search(r"timeout -s INT -k (\d+) ", text)[1])
    assert end + grace <= MOST


def test_what_tells_most_fits_into_the_time(plan):
    assert sum(limit for limit, _ in plan.values()) - plan["tests"][0] <= MOST


def test_every_test_of_a_gpu_lies_in_a_file_that_it_names(plan):
    marked = {
        f"tests/{path.name}"
        for path in (ROOT / "tests").glob("test_*.py")
        if re.search(r"^@pytest\.mark\.gpu|marks=.*mark\.gpu", path.read_text(), re.MULTILINE)
    }
    named = {word for word in plan["tests"][1] if word.startswith("tests/")}
    assert marked
    assert marked <= named
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["contract", "tests", "rows"])
def test_what_it_runs_is_collected_without_the_packages_of_the_commands(plan, phase, tmp_path):
    (tmp_path / "tyro.py").write_text("raise ImportError('not installed')")
    command = [word for word in plan[phase][1] if not word.startswith("--contract")]
    at = command.index("--device") if "--device" in command else len(command)
    command = [*command[:at], *command[at + 2 :], "--collect-only"]
    command = [word for word in command if not word.endswith("contract.xml")]
    done = subprocess.run(
        [*command, "-n", "0"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " error" not in done.stdout.splitlines()[-1]
