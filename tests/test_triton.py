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

WARP = 32
SHARED_MEMORY = 99 * 1024  # bytes a block may use on sm_86 and sm_89, the least of sm_80 to sm_100
OPS_IN_TRITON = {name: op.triton for name, op in OPS.items() if op.triton is not None}


def module_of(name):
    return import_module(f"fastlatent.ops.{name}")


def test_each_kernel_of_an_op_states_its_signature():
    for name in set(OPS_IN_TRITON.values()):
        served = {op for op, module in OPS_IN_TRITON.items() if module == name}
        assert set(module_of(name).SIGNATURES) == served


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("op", OPS_IN_TRITON)
def test_compiles(op, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = module_of(OPS_IN_TRITON[op])
    kernel, arguments, constants = module.SIGNATURES[op]
    assert set(arguments) | set(constants) == set(kernel.arg_names)
    compiled = triton.compile(
        ASTSource(kernel, arguments | dict.fromkeys(constants, "constexpr"), constants),
        target=GPUTarget("cuda", architecture, WARP),
        options=module._OPTIONS,
    )
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert compiled.metadata.target.arch == architecture
    assert compiled.metadata.shared <= SHARED_MEMORY
