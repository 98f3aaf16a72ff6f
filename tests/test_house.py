"""The house keeps its floors: who imports whom, what an import costs, what the core includes."""

import ast
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import fastlatent
from fastlatent.__main__ import COMMANDS
from fastlatent.models import MODELS
from fastlatent.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastlatent"
CORE = ROOT / "csrc"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the ground up, which is `_core`, the compiled csrc; a module imports from rows below its own.
FLOORS = (
    {"jobs", "noise", "ops", "untouched"},
    {"estimate", "files", "geometry", "nn"},
    {"data", "metrics", "paths", "plots", "priors"},
    {"models", "patches"},
    {"inference", "presets"},
    {"runs"},
    {"commands", "training"},
    set(COMMANDS),
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS, 1) for module in modules}
FLOOR["_core"] = 0
ABOVE = {"__init__", "__main__"}  # the package itself, which hands out what is asked for

NAMING = PACKAGE / "files" / "code.py"  # imports what the user names, which is not of the house

IMPORTERS = {"import_module", "__import__", "find_spec", "run_module"}


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names that the source of a module in `package` imports, wherever and however.

    A name that is only known when the program runs ends in "*".
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            name = function.id if isinstance(function, ast.Name) else name
            if name in IMPORTERS:
                yield absolute(literal(node.args[0]), package)


def absolute(name: str, package: str) -> str:
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if level == 0:
        return name
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *([rest] if rest else [])])


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        return f"{node.values[0].value}*"
    return "*"


def package_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(ROOT).parts)


def module_of(path: Path) -> str:
    """The module or package directly under fastlatent that the file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import fastlatent.runs.log as log", "fastlatent.runs.log"),
        ("from fastlatent.runs import Run", "fastlatent.runs.Run"),
        ("def f():\n    from fastlatent import runs", "fastlatent.runs"),
        ("from . import codes", "fastlatent.priors.codes"),
        ("from .. import runs", "fastlatent.runs"),
        ("from ..runs.log import Log", "fastlatent.runs.log.Log"),
        ("import importlib\nimportlib.import_module('fastlatent.runs')", "fastlatent.runs"),
        ("import_module('..runs', __package__)", "fastlatent.runs"),
        ("__import__('fastlatent.runs')", "fastlatent.runs"),
        ("import_module(f'fastlatent.runs.{x}')", "fastlatent.runs.*"),
        ("import_module(x)", "*"),
    ],
)
def test_no_form_of_import_escapes(source, target):
    assert target in imported(source, "fastlatent.priors")


def test_every_module_has_its_floor():
    modules = {module_of(path) for path in SOURCES}
    assert modules == set(FLOOR) - {"_core"} | ABOVE
    assert len(FLOORS) <= 8 and len(modules) <= 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = module_of(path)
    floor = len(FLOORS) + 1 if here in ABOVE else FLOOR[here]
    for name in imported(path.read_text(), package_of(path)):
        root, _, rest = name.partition(".")
        module = rest.partition(".")[0]
        if root == "*" or (root == "fastlatent" and module == "*"):
            assert here in ABOVE or path == NAMING, (
                f"{path} imports what only the running program knows"
            )
        if root != "fastlatent" or module in {"", "*", here} or module not in FLOOR:
            continue
        assert FLOOR[module] < floor, f"{path} imports upwards or sideways: {name}"


def test_no_family_is_asked_for_by_name_outside_models():
    """What only some can is a protocol, so that a family of one's own can do it too."""
    families = {form.__name__ for forms in MODELS.values() for form in forms}
    asked = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                kinds = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                asked += [(module_of(path), kind) for kind in kinds & families]
    assert {module for module, _ in asked} == {"models"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").glob("*.py")), ids=lambda path: path.name)
def test_ops_import_torch_and_numpy_only(path):
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "fastlatent"}
    if path.stem.endswith("_triton"):
        allowed.add("triton")
    roots = {name.partition(".")[0] for name in imported(path.read_text(), package_of(path))}
    # Asking whether Triton is there is not to need it.
    assert roots - allowed <= {"triton"} if path.stem == "_register" else roots <= allowed


COST = """
import sys, time
import fastlatent
assert not {"torch", "numpy", "asyncio", "inspect"} & sys.modules.keys()
assert not any(name.startswith("fastlatent.") for name in sys.modules)
offered = {"data", "geometry", "metrics", "models", "nn", "ops", "paths", "priors"}
assert offered | {"train"} == {*fastlatent.MODULES}
assert offered | {"load", "patch", "train"} <= {*dir(fastlatent)}
def imported(module):
    before, start = set(sys.modules), time.process_time()
    __import__(module)
    took = time.process_time() - start
    return took, {name.partition(".")[0] for name in sys.modules.keys() - before}
torch, _ = imported("torch")
ops, needed = imported("fastlatent.ops")
_, more = imported("fastlatent.geometry")
for name in offered:
    assert getattr(fastlatent, name) is sys.modules[f"fastlatent.{name}"], name
print(ops / torch, "torch._dynamo" in sys.modules, *needed | more)
"""


def test_importing_ops_and_geometry_is_cheap():
    run = subprocess.run(
        [sys.executable, "-c", COST], capture_output=True, text=True, check=True, cwd=ROOT
    )
    ratio, dynamo, *modules = run.stdout.split()
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "fastlatent"}
    assert set(modules) <= allowed and "fastlatent" in modules
    assert dynamo == "False"
    assert float(ratio) < 0.2, "time of a processor, against that of import torch"


# Prints what is imported with each command that takes its time and is not always needed.
COSTLY = """
import importlib, sys
costly = {"torch._dynamo", "torch._inductor", "torchvision", "matplotlib", "accelerate", "h5py"}
costly |= {"sklearn", "tensorboard", "tyro", "torch.utils.tensorboard", "bokeh"}
for word in sys.argv[1:]:
    importlib.import_module(f"fastlatent.{word}")
    found = sorted(costly & sys.modules.keys())
    costly -= set(found)
    print(word, *found)
"""


def test_no_command_imports_what_it_may_not_need():
    run = subprocess.run(
        [sys.executable, "-c", COSTLY, *COMMANDS], capture_output=True, text=True, check=True
    )
    found = {word: names for word, *names in map(str.split, run.stdout.splitlines()) if names}
    assert not {word: names for word, names in found.items() if names != ["tyro"]}
    assert len(run.stdout.splitlines()) == len(COMMANDS)


def includes(path: Path) -> set[str]:
    return set(re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE))


def test_the_core_does_not_know_torch():
    foreign = re.compile(r"^(torch|ATen|c10|caffe2)/")
    for path in CORE.iterdir():
        assert not [header for header in includes(path) if foreign.match(header)], path


def reachable(path: Path) -> set[str]:
    """What the file includes, and what our headers among it include.

    Without what cuda.h includes: those lines are for CUDA builds, which these files don't see.
    """
    found: set[str] = set()
    queue = [path]
    while queue:
        new = includes(queue.pop()) - found
        found |= new
        queue += [CORE / name for name in new if name != "cuda.h" and (CORE / name).is_file()]
    return found


@pytest.mark.parametrize("path", sorted(CORE.glob("*.simd.cpp")), ids=lambda path: path.name)
def test_instruction_sets_include_no_code_of_the_standard_library(path):
    own = {header.name for header in CORE.glob("*.h")}
    bodiless = {"cstddef", "cstdint", "cstring", "type_traits", "immintrin.h", "arm_neon.h"}
    assert reachable(path) - own <= bodiless


INSTRUCTION_SETS = re.findall(
    r"^ *add_instruction_set\((\w+) (\d+)([^)]*)\)",
    (ROOT / "CMakeLists.txt").read_text(),
    re.MULTILINE,
)


@pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("nm")) or platform.machine() != "x86_64",
    reason="needs a C++ compiler and nm, on x86-64",
)
@pytest.mark.parametrize("path", sorted(CORE.glob("*.simd.cpp")), ids=lambda path: path.name)
@pytest.mark.parametrize(("name", "width", "flags"), INSTRUCTION_SETS, ids=lambda word: word[:8])
def test_instruction_sets_share_no_function(path, name, width, flags, tmp_path):
    """The linker keeps one copy of a weak symbol: it must not be one for a newer processor."""
    compiled = tmp_path / "kernels.o"
    define = ["-DFL_X86", f"-DFL_ISA={name}", f"-DFL_BYTES={width}"]
    options = ["-std=gnu++17", "-O0", "-w", "-fno-exceptions", *flags.split(), "-c"]
    subprocess.run(["c++", *define, *options, path, "-o", compiled], check=True)
    nm = ["nm", "--demangle", "--defined-only", compiled]
    listing = subprocess.run(nm, capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [line.split(maxsplit=2)[1:] for line in listing]
    assert any(kind == "W" for kind, _ in symbols)
    shared = [s for kind, s in symbols if kind in "WVu" and f"fl::{name}::" not in s]
    assert not shared


def test_no_test_imports_another():
    """What two share has a module of its own."""
    tests = sorted((ROOT / "tests").glob("*.py"))
    names = {path.stem for path in tests if path.stem.startswith("test_")}
    for path in tests:
        shared = {name.partition(".")[0] for name in imported(path.read_text(), "tests")}
        assert not shared & names, path


def test_every_file_has_a_topic():
    none = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}
    files = [path for folder in (PACKAGE, CORE, ROOT / "tests") for path in folder.rglob("*")]
    assert not [path for path in files if path.stem.split(".")[0] in none]


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_what_the_documents_tell_to_type_exists():
    text = "".join(path.read_text() for path in DOCUMENTS)
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert targets == {"setup", "check", "test", "bench", "train", "docs"}
    words = set(re.findall(r"\bmake ([a-z]+)", text))
    commands = set(re.findall(r"python -m fastlatent\.([a-z_]+)", text))
    files = set(re.findall(r"\b(?:fastlatent|csrc|tests|benchmarks)/[\w./]+\.\w+", text))
    assert words and words <= targets
    assert commands and not [name for name in commands if not (PACKAGE / f"{name}.py").is_file()]
    assert files and not [name for name in files if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, heading = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, link


def test_every_preset_is_in_the_table_of_presets():
    table = (ROOT / "docs" / "presets.md").read_text()
    named = set()
    for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        first, *others = re.findall(r"`([\w-]+)`", cell)
        named |= {first}
        named |= {
            re.sub(r"-\d+$", name, first) if name.startswith("-") else name for name in others
        }
    assert named == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_snippets_of_documents_run(path):
    for snippet in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(snippet, str(path), "exec"), {})


def test_the_version_is_written_once():
    """Where a package of Python or a project of CMake could state its own; not others' versions."""
    stated = re.compile(r"^\s*__version__\s*(?::[^=]*)?=", re.MULTILINE)
    holders = [path for path in SOURCES if stated.search(path.read_text())]
    assert holders == [PACKAGE / "__init__.py"]
    assert len(stated.findall(holders[0].read_text())) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    source = ROOT / project["tool"]["scikit-build"]["metadata"]["version"]["input"]
    assert source == holders[0]
    cmake = (ROOT / "CMakeLists.txt").read_text()
    (arguments,) = re.findall(r"^project\(([^)]*)\)", cmake, re.MULTILINE)
    assert not re.search(r"VERSION\s+\d", arguments)


def test_the_citation_is_complete_and_of_this_version():
    """Citation File Format 1.2.0, whose required keys are these four."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["title"] and citation["authors"]
    assert citation["version"] == fastlatent.__version__
    assert citation["license"] == "MIT"


# A source distribution has no workflows.
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_name_actions_by_their_full_commit(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert actions
    assert not [action for action in actions if not re.search(r"@[0-9a-f]{40}$", action)]


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
def test_wheels_are_built_for_all_pythons_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = re.findall(r"Python :: 3\.(\d\d)", "\n".join(project["project"]["classifiers"]))
    assert f">=3.{named[0]}" == project["project"]["requires-python"]
    built = project["tool"]["cibuildwheel"]["build"]
    assert built == f"cp3{{{','.join(named)}}}-{{manylinux,macosx}}*"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    matrix = workflow["jobs"]["wheels"]["strategy"]["matrix"]
    assert matrix["python"] == [f"cp3{minor}" for minor in named]
