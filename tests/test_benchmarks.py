"""How benchmark results are judged: goals of one device say nothing about another."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATH, CONFTEST = (ROOT / "benchmarks" / name for name in ("table.py", "conftest.py"))
COPY = "copy of as many bytes"


def module_at(path):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def judge():
    return module_at(PATH)


def row(what, implementation, median, size="", **more):
    row = {"what": what, "size": size, "implementation": implementation}
    return row | {"median": median, "q1": median, "q3": median} | more


def test_a_goal_holds_for_its_device_and_its_size(judge):
    size, scipy = "2048 x 2048, condition 1e6", "scipy.linalg.sqrtm, as pytorch-fid"
    rows = [row("trace_sqrtm", "fastlatent", 1.0, size), row("trace_sqrtm", scipy, 7.0, size)]
    assert [line.split("|")[2:5] for line in judge.judgements(rows, "cpu")] == [
        [" 8 x ", " 7 x ", " **missed** "]
    ]
    worse = [one | {"size": "2048 x 2048, condition 1e12"} for one in rows]
    assert [line.split("|")[2] for line in judge.judgements(worse, "cpu")] == [" 6 x "]
    assert [line.split("|")[2:5] for line in judge.judgements(rows, "cuda")] == [
        [" at most 0.02 s ", " 1 s ", " **missed** "]
    ]


def test_the_full_mixture_is_judged_by_its_dimensions(judge):
    what, rival = "full mixture, forward + backward", "MixtureSameFamily"
    rows = [
        row(what, name, took, f"25600 x 50 x {d}, float32")
        for d in (2, 8, 32)
        for name, took in (("fastlatent", 1.0), (rival, 2.7))
    ]
    lines = [line.split("|")[1:5] for line in judge.judgements(rows, "cpu")]
    assert [(name.split()[9], *rest) for name, *rest in lines] == [
        ("2,", " 3 x ", " 2.7 x ", " **missed** "),
        ("8,", " 2.5 x ", " 2.7 x ", " met "),
        ("32,", " 2.5 x ", " 2.7 x ", " met "),
    ]


@pytest.mark.parametrize(("took", "MiB", "met"), [(1.2, 0, "met"), (1.4, 512, "**missed**")])
def test_a_glo_step_is_judged_by_one_on_fewer_codes(judge, took, MiB, met):
    what = "glo step of 128 codes"
    rows = [row(what, "fastlatent", 1.0, "10,000 codes", MiB=0)]
    assert not list(judge.judgements(rows, "cpu"))
    rows.append(row(what, "fastlatent", took, "1,000,000 codes", MiB=MiB))
    many = "1,000,000 codes"
    assert list(judge.judgements(rows, "cpu")) == [
        f"| {what}, {many} against 10,000 codes | at most 1.3 x | {took} x | {met} |",
        f"| {what}, {many} | at most 8 MiB | {MiB} MiB | {met} |",
    ]


def test_memory_is_judged_apart_from_time(judge):
    what = "precision, recall, density, coverage"
    rows = [row(what, "fastlatent", 1.0, MiB=84), row(what, "prdc", 4.0, MiB=1000)]
    lines = [line.split("|")[3:5] for line in judge.judgements(rows, "cpu")]
    assert lines == [[" 4 x ", " **missed** "], [" 11.9 x ", " met "]]
    assert len(list(judge.judgements([one | {"MiB": None} for one in rows], "cpu"))) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_is_judged_where_it_was_measured(judge, device):
    rows = [
        row("trace_sqrtm", "fastlatent", 0.01, "2048 x 2048, equal matrices", off=2e-9),
        row("trace_sqrtm", "fastlatent", 0.01, "64 x 256 x 256", off=1e-9),
        row("trace_sqrtm", "fastlatent", 0.01, "as before it was measured"),
        row("trace_sqrtm", "fastlatent", 0.01, "not a number", off=float("nan")),
        row("trace_sqrtm", "Cholesky and eigvalsh by hand", 0.01, "a rival's", off=1.0),
    ]
    lines = [line.split("|")[1:5] for line in judge.judgements(rows, device) if "off by" in line]
    assert lines == [
        [name, " off by at most 1e-09 ", found, verdict]
        for name, found, verdict in (
            (" trace_sqrtm, 2048 x 2048, equal matrices ", " 2e-09 ", " **missed** "),
            (" trace_sqrtm, 64 x 256 x 256 ", " 1e-09 ", " met "),
            (" trace_sqrtm, not a number ", " nan ", " **missed** "),
        )
    ]


def test_a_file_of_a_gpu_gets_a_table_whatever_it_lacks(judge, tmp_path):
    what = "mixture, K = 10, n = 4096, c = 3: forward + backward"
    rows = [row(what, "fastlatent", 2.0), row(what, COPY, 1.5), row("binarize", "eager", 1.0)]
    machine = dict.fromkeys(("processor", "threads", "instructions", "python", "torch", "compiler"))
    result = {"machine": machine | {"gpu": "NVIDIA"}, "rows": rows, "command": "pytest"}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(result | {"date": "2026-01-01", "commit": "unversioned"}))
    table = judge.table(path)
    assert (
        "### NVIDIA\n" in table and "| binarize |  | eager | 1e+03 | 1e+03 to 1e+03 |  |" in table
    )
    assert f"| {what},  against {COPY} | 0.7 x | 0.75 x | met |" in table


@pytest.fixture(scope="module")
def guard():
    return module_at(CONFTEST)


CONTRACT = """<testsuites><testsuite>
<testcase name="test_values[elu-cuda-avx2]"/>
<testcase name="test_values[elu_backward-cpu]"/>
<testcase name="test_values[binarize-cuda]"/>
<testcase name="test_gradients[binarize_backward-cuda]"><failure/></testcase>
<testcase name="test_values[pack_bits-cuda]"><skipped/></testcase>
<testcase name="test_values[unpack_bits-cpu]"/>
<testcase name="test_values[insert_knot-cuda]"><error/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("op", "green"),
    [
        ("elu", True),
        ("binarize", False),  # its gradient is red
        ("pack_bits", False),  # skipped
        ("unpack_bits", False),  # tested on another device
        ("insert_knot", False),
        ("bspline", False),  # missing
    ],
)
def test_a_row_needs_a_test_of_its_op_that_passed(guard, tmp_path, op, green):
    results = tmp_path / "contract.xml"
    results.write_text(CONTRACT)
    assert guard.green_in(results, op, "cuda") is green
