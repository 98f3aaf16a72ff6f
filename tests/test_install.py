"""What an installed package must do, wherever Python runs, and what a build must say.

Installed copies are laid out in temporary folders as pip would; Python runs on them without the
site module, so that an editable install of the repository does not step in.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch

import fastlatent
from fastlatent import ops
from fastlatent.ops import _load

ROOT = Path(__file__).resolve().parent.parent
PYCACHE = shutil.ignore_patterns("__pycache__", "*.so")
REQUIREMENTS = [str(Path(module.__file__).parents[1]) for module in (torch, numpy)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder like site-packages after `pip install .`."""
    try:
        core = Path(_load.core().__file__)
    except _load.CoreMissing as missing:
        pytest.skip(str(missing))
    site = tmp_path_factory.mktemp("site")
    package = Path(fastlatent.__file__).parent
    shutil.copytree(package, site / "fastlatent", ignore=PYCACHE)
    shutil.copy(core, site / "fastlatent")
    records = site / f"fastlatent-{fastlatent.__version__}.dist-info"
    records.mkdir()
    (records / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: fastlatent\nVersion: {fastlatent.__version__}\n"
    )
    (records / "RECORD").write_text(f"fastlatent/__init__.py,,\nfastlatent/{core.name},,\n")
    return site


def python(code: str, cwd: Path, site: Path, **settings: str) -> str:
    """What `code` prints when Python runs in `cwd` and finds packages in `site`."""
    path = os.pathsep.join([str(site), *REQUIREMENTS])
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": path, "FASTLATENT_IMPL": "auto", "FASTLATENT_STRICT": "0"}
        | settings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


WHERE = """
import fastlatent
from fastlatent.ops import OPS, _load, table
served = {row.implementation for row in table() if OPS[row.op].cpp}
print(fastlatent.__file__, _load.core().__file__, *served, sep="\\n")
"""


def test_the_source_folder_does_not_hide_the_installed_core(installed):
    package, core, *implementations = python(WHERE, ROOT, installed).split("\n")
    assert Path(package).parent == ROOT / "fastlatent"
    assert Path(core).parent == installed / "fastlatent"
    assert "cpp" in implementations and "torch" not in implementations


def test_the_installed_package_works_in_any_folder(installed, tmp_path):
    package, core, *implementations = python(WHERE, tmp_path, installed).split("\n")
    assert Path(package).parent == Path(core).parent == installed / "fastlatent"
    assert "cpp" in implementations and "torch" not in implementations


CALL = """
import warnings
import torch
from fastlatent import ops
x = torch.tensor([[0.5, -2.0]])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    results = [ops.binarize(x)[0].tolist() for _ in range(2)]
print(len(caught), results, caught[0].message, sep="\\n")
"""


def test_a_core_of_other_sources_is_not_used(installed, tmp_path):
    for folder in ("fastlatent", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=PYCACHE)
    with open(tmp_path / "csrc" / "parallel.h", "a") as header:
        header.write("// one more line\n")
    warned, results, message = python(CALL, tmp_path, installed).splitlines()
    assert warned == "1" and results == "[[[1.0, -1.0]], [[1.0, -1.0]]]"
    assert "was built from other sources than" in message
    assert message.endswith("run `pip install .` again")


BARE = """
import sys
sys.modules["triton"] = None  # importing it fails, as where it is not installed
import fastlatent
offered = [getattr(fastlatent, name) for name in (*fastlatent.MODULES, *fastlatent.FUNCTIONS)]
print(len(offered), len(fastlatent.load("lbae-digits").sample(2)))
print(*sorted({row.implementation for row in fastlatent.ops.table()}))
"""


def test_it_works_without_triton_a_compiler_and_a_gpu(installed, tmp_path):
    settings = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    counts, served = python(BARE, tmp_path, installed, **settings).splitlines()
    assert counts == f"{len(fastlatent.MODULES) + len(fastlatent.FUNCTIONS)} 2"
    assert served == "cpp linalg"


BUILD = """
import sys
from scikit_build_core.build import build_wheel
build_wheel(sys.argv[1], {"build-dir": sys.argv[2]})
"""


def build(into: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel of the repository with what the environment holds, as pip would."""
    pytest.importorskip("scikit_build_core", reason="builds need the extra dev")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTLATENT", "CUDA"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), clean["PATH"]])
    return subprocess.run(
        [sys.executable, "-c", BUILD, into, into / "build"],
        cwd=ROOT,
        env=clean | {"PATH": path} | settings,
        capture_output=True,
        text=True,
    )


def test_a_pure_python_wheel_works_and_says_so(tmp_path):
    made = build(tmp_path, FASTLATENT_CORE="0")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "fastlatent" / "py.typed").is_file()  # its types are for others' checkers, too
    assert (site / "fastlatent" / "weights" / "lbae-digits" / "codes.safetensors").is_file()
    warned, results, message = python(CALL, tmp_path, site).splitlines()
    assert warned == "1" and results == "[[[1.0, -1.0]], [[1.0, -1.0]]]"
    assert "installed without its compiled core (FASTLATENT_CORE=0)" in message


def without_nvcc() -> str:
    folders = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not (Path(folder) / "nvcc").exists())
    if shutil.which("c++", path=path) is None:
        pytest.skip("nvcc and the C++ compiler lie in one folder")
    return os.pathsep.join([str(Path(sys.executable).parent), path])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"CXX": "/bin/false"}, 'The C++ compiler "/bin/false" is not able to compile'),
        ({"FASTLATENT_CUDA": "1", "PATH": ""}, "FASTLATENT_CUDA=1 needs nvcc on the PATH"),
        ({"CUDACXX": "/nonexistent/nvcc"}, "nvcc compiles nothing here"),
        ({"FASTLATENT_CUDA": "yes"}, "FASTLATENT_CUDA must be 0, 1 or auto; got yes"),
        ({"FASTLATENT_CUDA": "0", "MAX_JOBS": "all"}, "MAX_JOBS must be a number"),
    ],
    ids=["compiler", "no nvcc", "broken nvcc", "unknown word", "unknown number"],
)
def test_a_build_that_cannot_be_is_loud(tmp_path, settings, sentence):
    if "PATH" in settings:
        settings = settings | {"PATH": without_nvcc()}
    made = build(tmp_path, **settings)
    assert made.returncode != 0
    assert sentence in " ".join((made.stdout + made.stderr).split())
    assert not list(tmp_path.glob("*.whl"))


FORK = """
import os
from concurrent.futures import ThreadPoolExecutor
import torch
from fastlatent import ops
torch.set_num_threads(4)
x = torch.randn(1024, 1024)
def codes():
    return ops.binarize(x)[0].numpy().tobytes()
want = codes()
child = os.fork()
if child == 0:
    right = codes() == want
    with ThreadPoolExecutor(3) as threads:
        results = [threads.submit(codes) for _ in range(30)]
        right = right and all(result.result() == want for result in results)
    os._exit(0 if right else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), codes() == want)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kernels_run_in_a_forked_child():
    """As in the worker processes of a data loader: the child inherits the memory but no thread."""
    run = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert run.stdout.split() == ["0", "True"], run.stderr


TEAM = """
import os
import torch
from fastlatent import ops
torch.set_num_threads(4)
x = torch.randn(1024, 1024)
x.exp()
before = len(os.listdir("/proc/self/task"))
ops.binarize(x)
print(before > 3, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted as on Linux")
def test_kernels_run_on_the_threads_of_torch():
    run = subprocess.run(
        [sys.executable, "-c", TEAM], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert run.stdout.split() == ["True", "0"], run.stderr


def test_kernels_run_in_several_threads_at_once():
    before = torch.get_num_threads()
    inputs = [torch.randn(512, 700 + 13 * i) for i in range(6)]

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes, error = ops.binarize(x)
        words = ops.pack_bits(codes)
        return codes, error, words, *ops.binary_moments(words, x.shape[1])

    torch.set_num_threads(1)
    try:
        want = [compute(x) for x in inputs]
        torch.set_num_threads(4)
        with ThreadPoolExecutor(len(inputs)) as pool:
            for _ in range(5):
                for got, expected in zip(pool.map(compute, inputs), want, strict=True):
                    assert all(map(torch.equal, got, expected))
    finally:
        torch.set_num_threads(before)
