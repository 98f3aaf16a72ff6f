"""Every Triton kernel compiles for every architecture that a release names, with no GPU at hand.

One process either interprets or compiles: `triton.jit` decides when it decorates.
"""

import os
from importlib import import_module

import pytest

from fastlatent.ops import OPS

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted", allow_module_level=True)
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastlatent.ops.elementary_triton import OPTIONS  # noqa: E402

WARP = 32
SHARED_MEMORY = 99 * 1024  # bytes a block may use on sm_86 and sm_89, the least of sm_80 to sm_100
OPS_IN_TRITON = {name: op.triton for name, op in OPS.items() if op.triton is not None}
MODULES = {
    name: import_module(f"fastlatent.ops.{name}") for name in sorted(set(OPS_IN_TRITON.values()))
}
VARIANTS = [
    pytest.param(module, kernel, types, constants, id=f"{op}-{number}")
    for module in MODULES.values()
    for number, (op, kernel, types, constants) in enumerate(module.SIGNATURES)
]


def test_each_kernel_of_an_op_states_its_signatures():
    for name, module in MODULES.items():
        served = {op for op, of in OPS_IN_TRITON.items() if of == name}
        assert {op for op, *_ in module.SIGNATURES} == served


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("module", "kernel", "types", "constants"), VARIANTS)
def test_compiles(module, kernel, types, constants, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert set(types) | set(constants) == set(kernel.arg_names)
    compiled = triton.compile(
        ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants),
        target=GPUTarget("cuda", architecture, WARP),
        options=OPTIONS,
    )
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert compiled.metadata.target.arch == architecture
    assert compiled.metadata.shared <= SHARED_MEMORY
