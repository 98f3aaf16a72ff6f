"""The operations on its latents that a decoder carries out, recorded while it runs once.

What is recorded are calls of PyTorch's own operators, below modules, hooks, functions and autograd.
So it makes no difference how the decoder is written: weights under spectral norm are constants
here, and a layer is the same operator as a module and as a function. The tape holds for all latents
only if the decoder's Python code does not look at values. Code that shows that it does is refused
here; whoever uses the tape verifies the rest.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Untraceable(Exception):
    """The decoder does something that a tape can't hold."""


class Register(NamedTuple):
    """The place of a tensor that depends on the latents; 0 holds the latents."""

    number: int


class Call(NamedTuple):
    """function(*args, **kwargs), with Register in place of tensors that depend on the latents."""

    function: Any  # torch._ops.OpOverload
    args: tuple
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]  # registers of its tensors, None for what is no tensor

    @property
    def name(self) -> str:
        """Such as "aten.addmm", without the overload."""
        return str(self.function.overloadpacket)

    def registers(self) -> Iterator[int]:
        """Inputs that depend on the latents."""
        for leaf in tree_leaves((self.args, self.kwargs), is_leaf=is_register):
            if is_register(leaf):
                yield leaf.number

    def argument(self, name: str) -> Any:
        """By its name in the operator's schema; the default where it was not passed."""
        for place, argument in enumerate(self.function._schema.arguments):
            if argument.name == name:
                if place < len(self.args):
                    return self.args[place]
                return self.kwargs.get(name, argument.default_value)
        raise KeyError(name)


def is_register(value: object) -> bool:
    return isinstance(value, Register)


class Tape(NamedTuple):
    """Calls in order, and the registers of the outputs; None where one does not depend on z."""

    calls: list[Call]
    outputs: list[int | None]
    shapes: list[tuple[int, ...]]  # of all registers
    smooth: list[bool]  # of all registers, whether they can have derivatives


def record(
    function: Callable[[Tensor], Any],  # -> tensors, or None, in a tuple
    z: Tensor,  # (n, d)
) -> Tape:
    """Run the function on z. Raises Untraceable."""
    with torch.no_grad(), _Recorder(z.detach().clone()) as recorder:
        outputs = function(recorder.latents)
    registers = [recorder.register(y) if isinstance(y, Tensor) else None for y in outputs]
    return Tape(recorder.calls, registers, recorder.shapes, recorder.smooth)


class _Recorder(TorchDispatchMode):
    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents
        self.calls: list[Call] = []
        self.shapes: list[tuple[int, ...]] = []
        self.smooth: list[bool] = []
        # Tensors are kept alive, or another one could get their id.
        self._tracked: dict[int, tuple[Tensor, int]] = {}
        self._stale: dict[int, Tensor] = {}
        self._track(latents, True)

    def register(self, tensor: Tensor) -> int | None:
        if id(tensor) in self._stale:
            raise Untraceable("a tensor is read after another view of it was changed in place")
        return self._tracked[id(tensor)][1] if id(tensor) in self._tracked else None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = [t for t in tensors if self.register(t) is not None]
        name = function._schema.name
        if not inputs or name.startswith("aten::new_"):  # the latter take no more than a dtype
            return function(*args, **kwargs)
        smooth = any(self.smooth[self._number(t)] for t in inputs) and not name.endswith("_like")
        _refuse(function, smooth)
        places = (tree_map(self._place, args), tree_map(self._place, kwargs))
        if function._schema.is_mutable:
            function_of = _out_of_place(function)
            if not isinstance(args[0], Tensor) or self.register(args[0]) is None:
                raise Untraceable(f"{function} writes to a tensor from outside")
            result = function(*args, **kwargs)
            self._overwritten(args[0])
        else:
            function_of, result = function, function(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        outputs = tuple(self._track(y, smooth) if isinstance(y, Tensor) else None for y in results)
        self.calls.append(Call(function_of, *places, outputs))
        return result

    def _number(self, tensor: Tensor) -> int:
        return self._tracked[id(tensor)][1]

    def _place(self, leaf: Any) -> Any:
        index = self.register(leaf) if isinstance(leaf, Tensor) else None
        return leaf if index is None else Register(index)

    def _track(self, tensor: Tensor, smooth: bool) -> int:
        self.shapes.append(tuple(tensor.shape))
        self.smooth.append(smooth and tensor.is_floating_point())
        self._tracked[id(tensor)] = (tensor, len(self.shapes) - 1)
        return len(self.shapes) - 1

    def _overwritten(self, changed: Tensor) -> None:
        """Other tensors in the same storage no longer hold what was recorded of them."""
        storage = changed.untyped_storage()._cdata
        for key, (tensor, _) in list(self._tracked.items()):
            if tensor is not changed and tensor.untyped_storage()._cdata == storage:
                self._stale[key] = tensor
                del self._tracked[key]


def _refuse(function: Any, smooth: bool) -> None:
    """Raises Untraceable for operators whose result is not a function of tensors alone."""
    tags = function.tags
    if torch.Tag.nondeterministic_seeded in tags:
        raise Untraceable(f"{function} is random")
    if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
        raise Untraceable(f"{function} looks at values")
    if smooth and str(function.overloadpacket) in ("aten.detach", "aten.detach_"):
        raise Untraceable("a tensor is detached from the latents")


def _out_of_place(function: Any) -> Any:
    """The operator that returns what an in-place one writes into its first argument."""
    name = function._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    if packet is None or function._overloadname not in packet.overloads():
        raise Untraceable(f"{function} changes a tensor in place")
    return getattr(packet, function._overloadname)
