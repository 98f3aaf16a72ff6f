"""The modules that a function refers to."""

import contextlib
import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn


class Holder(nn.Module):
    """Calls a function, and holds the modules it refers to."""

    part0: nn.Module  # the function, where it is a module

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        # A compiled module can be neither recorded nor transformed; this is what it was made from.
        function = getattr(function, "_orig_mod", function)
        self.function = function if not isinstance(function, nn.Module) else None
        for number, module in enumerate(dict.fromkeys(modules_of(function))):
            self.add_module(f"part{number}", module)
        self.training = False

    def forward(self, z: Tensor) -> Any:
        return self.part0(z) if self.function is None else self.function(z)


# How far what holds modules is followed: from a function to another one, on to an object, to a list
# in it. Library functions refer to others without end.
_REACH = 3


def modules_of(held: object, reach: int = _REACH) -> Iterator[nn.Module]:
    """The module itself, or those that a function, an object or a container refers to."""
    if isinstance(held, nn.Module):
        yield held
    elif reach:
        for part in _parts(held):
            yield from modules_of(part, reach - 1)


def _parts(held: object) -> Iterator[object]:
    if isinstance(held, tuple | list):
        yield from held
    elif isinstance(held, dict):
        yield from held.values()
    elif isinstance(held, functools.partial):
        yield from (held.func, *held.args, *held.keywords.values())
    elif inspect.ismethod(held):
        owner = held.__self__
        yield from (owner,) if isinstance(owner, nn.Module) else _attributes(owner)
        yield held.__func__
    elif inspect.isfunction(held):
        yield from _scope(held)
    elif callable(held) and not isinstance(held, type):
        yield from _attributes(held)
        yield type(held).__call__


def _attributes(thing: object) -> Iterable[object]:
    return getattr(thing, "__dict__", {}).values()


def _scope(function: FunctionType) -> Iterator[object]:
    """What a function's code finds outside of it, and of that the attributes which it reads.

    inspect.getclosurevars takes the names of attributes for those of global variables.
    """
    names, attributes = _names(function.__code__)
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell: it is not assigned yet
            found.append(cell.cell_contents)
    for value in found:
        yield value
        if not callable(value):
            own = getattr(value, "__dict__", {})
            yield from (own[name] for name in attributes if isinstance(own.get(name), nn.Module))


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """The global variables and the attributes that code reads, with the functions within it."""
    names, attributes = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
        elif isinstance(instruction.argval, CodeType):
            inner = _names(instruction.argval)
            names |= inner[0]
            attributes |= inner[1]
    return names, attributes
