"""python -m fastlatent.doctor: what this machine offers, which kernel serves which op, self-tests.

Exits with 1 when something that should work does not.
"""

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import fastlatent
from fastlatent import ops
from fastlatent.commands.console import command, parse
from fastlatent.jobs.errors import RunError
from fastlatent.ops import OPS, _load
from fastlatent.ops._register import Op


@dataclass(frozen=True)
class Options:
    """Nothing to choose: the doctor looks at everything."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    parse(
        Options,
        argv,
        "doctor",
        "Show what this machine offers and which kernel serves each op, and test every op.\n\n"
        "The exit code is 1 when something that should work does not.",
    )
    for line in _machine():
        print(line)
    troubles = []
    width = max(map(len, OPS)) + 2
    print(f"\n{'op':<{width}}{'device':<8}{'served by':<11}{'self-test':<11}why")
    for row in ops.table():
        fault = _self_test(OPS[row.op], row.device)
        result = fault or "passed"
        print(f"{row.op:<{width}}{row.device:<8}{row.implementation:<11}{result:<10} {row.reason}")
        if fault:
            troubles.append(f"{row.op} on {row.device} {fault}")
        elif row.state == "missing":
            troubles.append(f"{row.op} on {row.device} has no kernel: {row.reason}")
    if troubles:
        raise RunError("; ".join(troubles))
    print("\nall well")


def _machine() -> Iterator[str]:
    packages = {"fastlatent": fastlatent.__version__, "torch": torch.__version__}
    for name in ("triton", "numpy", "torchvision", "accelerate"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    yield f"python       {platform.python_version()} on {platform.platform()}"
    yield f"packages     {', '.join(f'{name} {v}' for name, v in packages.items())}"
    try:
        core = _load.core()
    except _load.CoreMissing as missing:
        yield f"core         none: {missing}"
    else:
        cuda = f"CUDA {core.cuda}" if core.cuda else "no CUDA"
        yield f"core         {core.__file__} ({core.compiler}, {cuda})"
        threads = torch.get_num_threads()
        yield f"processor    {core.isa()} of {', '.join(core.isas())}; {threads} threads"
    if not torch.cuda.is_available():
        yield "GPU          none that PyTorch can use"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm_{properties.major}{properties.minor}"
        yield f"GPU          {properties.name}, {capability}, {properties.total_memory >> 30} GiB"


def _self_test(op: Op, device: str) -> str | None:
    """Compares the op with its reference on every case; a few words when they differ."""
    for dtype in op.dtypes:
        for args in op.cases(device, dtype):
            try:
                got, want = op(*args), op.reference(*args)
            except Exception as error:  # whatever a broken kernel raises is the finding
                return f"raised {type(error).__name__}: {error}"
            pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True)
            for i, (g, w) in enumerate(pairs):
                if not _agrees(op, args, i, g, w):
                    return f"differs from its reference in {dtype}"
    return None


def _agrees(op: Op, args: tuple, output: int, got: torch.Tensor, want: torch.Tensor) -> bool:
    if not op.is_discrete(output, want):
        tolerance = 2e-2 if got.dtype.itemsize == 2 else 1e-5
        scale = float(want.abs().max()) if want.numel() else 0.0
        return torch.allclose(got, want, rtol=tolerance, atol=1e-6 + tolerance * scale)
    if op.decided is None:
        return torch.equal(got, want)
    mask = op.decided(*args)
    if got.is_floating_point():
        return torch.equal(got[mask], want[mask])
    return not ((got ^ want) & mask).any()


if __name__ == "__main__":
    sys.exit(main())
