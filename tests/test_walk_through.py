"""CONTRIBUTING's elementwise op, made of nothing but what is written there, keeps the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("## An elementwise op")[2]
SECTION = SECTION.partition("\n## ")[0]
# The op in its place, for this process alone; the Triton module lies beside the walk-through's.
ADDED = """
import sys
from pathlib import Path
import pytest
from fastlatent import ops
from fastlatent.ops import activation

folder, *arguments = sys.argv[1:]
ops.__path__.append(folder)
source = Path(folder, "activation.py")
exec(compile(source.read_text(), source, "exec"), vars(activation))
sys.exit(pytest.main(arguments))
"""


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def test_it_touches_six_files():
    rows = re.findall(r"^\| `([\w/.]+)`(.*?) \|", SECTION, re.MULTILINE)
    assert len(rows) == 6
    assert [name for name, rest in rows if not (ROOT / name).is_file()] == ["activation_triton.py"]


@pytest.mark.slow
def test_the_op_keeps_the_contract(tmp_path):
    """Its values by Triton's interpreter; gradients, compilation and the rest by the reference."""
    for name, text in zip(("activation.py", "activation_triton.py"), snippets("py"), strict=True):
        (tmp_path / name).write_text(text)
    for implementation, tests in (
        ("triton", "test_values or test_gradients or several_blocks"),
        ("torch", "test_opcheck or transforms or vmap or nan or aot"),
    ):
        chosen = ["tests/test_ops.py", "-q", "-n", "0", "-k", f"softplus and cpu and ({tests})"]
        command = [sys.executable, "-c", ADDED, tmp_path, *chosen]
        environment = {"TRITON_INTERPRET": "1", "FASTLATENT_IMPL": implementation}
        run = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout[-3000:]
        assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 6


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_the_formulas_compile(tmp_path):
    formulas, lines = snippets("cpp")
    source = (ROOT / "csrc" / "elementwise.simd.cpp").read_text()
    source = source.replace(
        "template <class F, class T", formulas + "\ntemplate <class F, class T", 1
    )
    source = source.replace("table[] = {\n", "table[] = {\n" + lines)
    assert lines in source and formulas in source
    define = ["-DFL_ISA=baseline", "-DFL_BYTES=16", f"-I{ROOT / 'csrc'}", "-std=gnu++17", "-w"]
    command = ["c++", *define, "-fsyntax-only", "-x", "c++", "-"]
    subprocess.run(command, input=source, text=True, check=True)
