"""Finds the compiled core and makes sure that it was built from these sources.

The source tree hides the installed core when Python runs from the repository root: `fastlatent` is
then the source folder, which has none. So the installed distribution is asked where its core lies.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path
from types import ModuleType


class CoreMissing(ImportError):
    """No compiled core serves this installation; the message says why."""


class LeftOut(CoreMissing):
    """What is missing was left out on purpose when this was built."""


@cache
def core() -> ModuleType:
    """The module `fastlatent._core`.

    Raises CoreMissing when it is not installed, or when it was built from other sources than the
    ones here.
    """
    module = _find()
    here = source_hash()
    if here is not None and here != module.source_hash:
        raise CoreMissing(
            f"the compiled core {module.__file__} was built from other sources than "
            f"{_sources()}; run `pip install .` again"
        )
    return module


def source_hash() -> str | None:
    """SHA-256 over csrc/ beside this package; None where only the package is installed."""
    folder = _sources()
    if folder is None:
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in {".h", ".cpp", ".cu"})
    lines = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sources() -> Path | None:
    folder = Path(__file__).resolve().parents[2] / "csrc"
    return folder if (folder / "bind.cpp").is_file() else None


def _find() -> ModuleType:
    try:
        return importlib.import_module("fastlatent._core")
    except ModuleNotFoundError as error:
        if error.name != "fastlatent._core":
            raise
    except ImportError as error:
        raise CoreMissing(f"the compiled core does not load: {error}") from error
    try:
        files = importlib.metadata.files("fastlatent") or []
    except importlib.metadata.PackageNotFoundError:
        raise CoreMissing(
            "fastlatent is not installed, only its source folder was found; run `pip install .`"
        ) from None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    for file in files:
        if file.name.startswith("_core.") and file.name.endswith(suffixes):
            return _load_file(os.fspath(file.locate()))
    raise LeftOut("fastlatent was installed without its compiled core (FASTLATENT_CORE=0)")


def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastlatent._core", path)
    if spec is None or spec.loader is None:
        raise CoreMissing(f"the compiled core {path} is not a Python module")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise CoreMissing(f"the compiled core {path} does not load: {error}") from error
    return module
