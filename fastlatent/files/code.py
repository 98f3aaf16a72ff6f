"""Code of the user's own: it runs where the user names it, and nowhere else."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

GROUPS = ("fastlatent.models", "fastlatent.priors")  # entry points of packages that register theirs
_PREFIX = "fastlatent_named_"  # of files as modules, so that none hides an installed one


class Code:
    """Modules, classes and functions that the user has named, to find by the names in a run."""

    def __init__(self, modules: Iterable[ModuleType] = (), things: Iterable[Any] = ()):
        self._modules = tuple(modules)
        self._things = {name_of(thing): thing for thing in things}

    @staticmethod
    def read(named: str | os.PathLike[str]) -> "Code":
        """Run Python files, or import installed modules, separated by commas.

        Raises ValueError where there is no such file or module, or it fails.
        """
        parts = [part.strip() for part in os.fspath(named).split(",")]
        return Code([_module(part) for part in parts if part])

    def __or__(self, other: "Code") -> "Code":
        joined = Code(self._modules + other._modules)
        joined._things = self._things | other._things
        return joined

    @property
    def option(self) -> str:
        """How a command names this code: " --model-from FILE.py"; empty where it needs none."""
        modules = [
            *self._modules,
            *(sys.modules[thing.__module__] for thing in self._things.values()),
        ]
        known = _packages()
        files = {
            getattr(module, "__file__", None) or "FILE.py": None
            for module in modules
            if module.__name__.partition(".")[0] not in known
        }
        return f" --model-from {shlex.quote(','.join(files))}" if files else ""

    def find(self, name: str) -> Any:
        """What "module:name" is in the code that the user named, or that packages registered.

        None where that holds nothing of the name.
        """
        if name in self._things:
            return self._things[name]
        module, _, path = name.partition(":")
        for candidate in self._modules:
            if (thing := _attribute(candidate, path)) is not None:
                return thing
        if module.partition(".")[0] not in _packages():
            return None
        return _attribute(_module(module), path)


def registered(groups: Sequence[str] = GROUPS) -> dict[str, EntryPoint]:
    """What installed packages register under these groups, by name; nothing of it is imported."""
    return {point.name: point for group in groups for point in entry_points(group=group)}


def _packages() -> set[str]:
    """Packages that register anything."""
    return {point.module.partition(".")[0] for point in registered().values()}


def name_of(thing: Any) -> str:
    """The name "module:name" of a class or function, by which `Code.find` finds it again.

    Raises ValueError for what has no name at the top level of its module.
    """
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    holder = sys.modules.get(module or "")
    if holder is None or _attribute(holder, path) is not thing:
        raise ValueError(
            f"{path or thing!r} must be a class or function at the top level of a module, so that "
            "it can be found again"
        )
    if module == "__main__" and getattr(holder, "__file__", None):
        module = Path(str(holder.__file__)).stem
    return f"{str(module).removeprefix(_PREFIX)}:{path}"


def _attribute(thing: Any, path: str) -> Any:
    for part in path.split("."):
        thing = getattr(thing, part, None)
    return thing


def _module(named: str) -> ModuleType:
    """The module in a Python file, or an installed one."""
    path = Path(named).expanduser()
    try:
        if path.suffix != ".py" and not path.is_file():
            return import_module(named)
        if not path.is_file():
            raise ValueError("there is no such file")
        return _run(path)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        reason = " ".join(str(error).split())
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"the code {named} cannot be loaded: {kind}{reason}") from error


def _run(path: Path) -> ModuleType:
    imported = sys.modules.get(path.stem)
    if imported is not None and getattr(imported, "__file__", None) == str(path.resolve()):
        return imported
    name = f"{_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError("it must be a file of Python code, NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    place = str(path.resolve().parent)
    sys.path.insert(0, place)  # its own modules lie beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(place)
    return module
