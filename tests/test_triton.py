"""Every Triton kernel is launched for every architecture that a release names, with no GPU at hand.

One process either interprets or compiles: `triton.jit` decides when it decorates.
"""

import os
from importlib import import_module

import pytest
import torch
from large_cases import large_cases, normal

from fastlatent import ops
from fastlatent.ops import OPS
from fastlatent.ops.jacobian.kinds import KINDS

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted", allow_module_level=True)
triton = pytest.importorskip("triton")

from launches import ARCHITECTURES, launching_nothing  # noqa: E402

OPS_IN_TRITON = {name: op for name, op in OPS.items() if op.triton is not None}
MOST_PROGRAMS = (2**31 - 1, 65_535, 65_535)


def layer(kind):
    return normal(2, 3, 16), normal(2, 20, 3, 16), kind, normal(3), normal(3), 0.01


def curves(degree):
    return torch.linspace(0, 1, 64), ops.uniform_knots(40, degree), degree, 0


# What the contract's cases leave out, or have in small sizes alone.
FURTHER = {
    "activation_jvp": [layer(kind) for kind in KINDS],
    "bspline": [(normal(2, 40, 64), *curves(degree)) for degree in (1, 2, 7, 31)],
    "bspline_backward": [(normal(2, 64, 64), *curves(degree)) for degree in (1, 2, 7, 31)],
    "polyline_length": [(normal(2, 40, d),) for d in (2, 784)],
    "polyline_length_backward": [(normal(2), normal(2, 40, d)) for d in (2, 784)],
}


def cases(op, architecture):
    """All of the contract's on one architecture; one for each type of numbers on the others."""
    for dtype in op.dtypes:
        of_dtype = [args for args in op.cases("cpu", dtype) if has_elements(args)]
        yield from of_dtype if architecture == 90 else of_dtype[:1]
    yield from large_cases(op)
    yield from FURTHER.get(op.name, ())


def has_elements(args):
    return all(a.numel() for a in args if isinstance(a, torch.Tensor))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS_IN_TRITON.values(), ids=OPS_IN_TRITON)
def test_launches(op, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(import_module(f"fastlatent.ops.{op.triton}"), op.name)
    with launching_nothing(architecture) as launches:
        for args in cases(op, architecture):
            before = len(launches)
            function(*args)
            assert len(launches) > before
    for launch in launches:
        assert launch.cubin[:4] == b"\x7fELF"
        for programs, most in zip(launch.grid, MOST_PROGRAMS, strict=True):
            assert 0 < programs <= most
