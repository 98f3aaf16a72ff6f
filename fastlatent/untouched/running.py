"""Running modules without leaving traces in them."""

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlatent.untouched.holder import Holder


class Untouched:
    """A function of latents, or of images, that leaves its modules as they were.

    Parameters take part without gradients. What the function writes to parameters, buffers and
    attributes the next call does not see. Layers and tables that it makes at its first input stay.
    """

    def __init__(self, function: Callable[[Tensor], Any]):
        self.holder = Holder(function)
        self._written: set[Tensor] | None = None  # parameters and buffers; None: not known yet
        self._copies: dict[Tensor, Tensor] = {}

    def __call__(self, x: Tensor) -> Any:
        with _uncompiled(), _without_checkpoints():
            if self._written is None:
                with torch.no_grad():
                    self._written = self._first_run(x.detach())
            found = _Found(self.holder.modules())
            try:
                return self._run(x)
            finally:
                found.put_back(_is_part)

    def _first_run(self, x: Tensor) -> set[Tensor]:
        """The parameters and buffers that are written to, once all parts have been made."""
        if any(is_lazy(parameter) for parameter in self.holder.parameters()):
            self.holder(x.clone())
        self._substitutes()
        parts = [*self.holder.modules(), *self.holder.parameters()]
        watched = {p: p for p in self.holder.parameters()} | self._copies
        found = _Found(self.holder.modules())
        watch = _Watch(watched.values(), x)
        try:
            with watch:
                self._run(x)
            if len(parts) != len([*self.holder.modules(), *self.holder.parameters()]):
                found = _Found(())  # what says that they are made has to stay, too
                return self._first_run(x)
        finally:
            found.put_back(lambda value: _is_part(value) or watch.made_without_input(value))
        return {original for original, tensor in watched.items() if watch.wrote_to(tensor)}

    def _run(self, x: Tensor) -> Any:
        # The input is copied, too: some functions write to it.
        call = (self.holder, self._substitutes(), (x.clone(),))
        return functional_call(*call, tie_weights=False)

    @torch.inference_mode(False)  # tensors that are made in it have no part in derivatives
    def _substitutes(self) -> dict[str, Tensor]:
        """What takes the place of parameters and buffers."""
        parameters, buffers = slots(self.holder)
        written = self._written or set()
        for tensor in written:
            self._copies.pop(tensor, None)
        tensors = {n: p.detach() for n, p in parameters.items() if p.requires_grad}
        for name, tensor in (parameters | buffers).items():
            if name in buffers or tensor in written or tensor.is_inference():
                if tensor not in self._copies or self._copies[tensor]._version:
                    self._copies[tensor] = tensor.detach().clone()
                tensors[name] = self._copies[tensor]
        return tensors


def slots(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers by name, once for each place in a module that holds one.

    They are names for `torch.func.functional_call` with tie_weights=False. `named_parameters` won't
    do: it names a tied weight once, which has several places, and functional_call by itself takes a
    module that is reached by two paths for two places, which it restores wrongly.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, part in module.named_modules():  # each module once
        parameters |= part.named_parameters(path, recurse=False, remove_duplicate=False)
        buffers |= part.named_buffers(path, recurse=False, remove_duplicate=False)
    return parameters, buffers


class _Found:
    """The attributes of modules as they were, and what dictionaries and lists among them held."""

    def __init__(self, modules: Iterable[nn.Module]):
        self._before: list[tuple[Any, Any]] = []
        for module in modules:
            attributes = vars(module)
            held = (attributes, *(v for v in attributes.values() if isinstance(v, dict | list)))
            self._before += ((one, one.copy()) for one in held)

    def put_back(self, stays: Callable[[object], bool]) -> None:
        """Undoes all changes but what `stays` where nothing was."""
        for held, before in self._before:
            if isinstance(held, list):
                held[:] = before
                continue
            # A name that stood for nothing may be that of a submodule now, which is held elsewhere.
            kept = {n: value for n, value in before.items() if value is not None or n in held}
            new = {n: value for n, value in held.items() if before.get(n) is None}
            kept |= {n: value for n, value in new.items() if stays(value)}
            if list(held) != list(kept):  # something is gone, and with it its place in the order
                held.clear()
            held.update(kept)


def _is_part(value: object) -> bool:
    return isinstance(value, nn.Module | nn.Parameter)


class _Watch(TorchDispatchMode):
    """Notes what code writes to some tensors, which it undoes at the end, and makes of an input."""

    def __init__(self, tensors: Iterable[Tensor], x: Tensor):
        super().__init__()
        self._tensors: dict[int, list[Tensor]] = defaultdict(list)  # by their storage
        for tensor in tensors:
            self._tensors[_storage(tensor)].append(tensor)
        self._before: dict[int, list[Tensor]] = {}  # of storages written to, what they held
        self._made = {id(x): x}  # of the input; kept alive, or another tensor could get its id

    def wrote_to(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._before

    def made_without_input(self, value: object) -> bool:
        return isinstance(value, Tensor) and id(value) not in self._made

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function._schema.is_mutable:
            for place, argument in enumerate(function._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._note(args[place] if place < len(args) else kwargs.get(argument.name))
        result = function(*args, **kwargs)
        if any(id(leaf) in self._made for leaf in tree_leaves((args, kwargs))):
            self._made |= {id(leaf): leaf for leaf in tree_leaves(result)}
        return result

    def _note(self, written: object) -> None:
        for tensor in tree_leaves(written):
            storage = _storage(tensor) if isinstance(tensor, Tensor) else None
            if storage in self._tensors and storage not in self._before:
                self._before[storage] = [t.detach().clone() for t in self._tensors[storage]]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, values in self._before.items():
            for tensor, value in zip(self._tensors[storage], values, strict=True):
                tensor.data.copy_(value)  # by `data`, which autograd does not count


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _uncompiled() -> AbstractContextManager[None]:
    """Runs what is compiled as it was written: neither recorders nor transforms look into it."""
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


# Held while settings and functions of the whole process are others.
PROCESS = threading.RLock()


class _Once:
    """In place of the autograd function of checkpoints."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_around(*args: Any, **kwargs: Any) -> Iterator[None]:
    """In place of what goes before and after a part that is to run again."""
    yield


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Runs checkpointed parts like all others.

    They run again in a backward pass, with what stands for parameters then and without recorders;
    and some kinds refuse `torch.autograd.grad`.
    """
    names = {
        "CheckpointFunction": _Once,
        "_checkpoint_without_reentrant_generator": _nothing_around,
        "_checkpoint_without_reentrant_generator_impl": _nothing_around,
    }
    with PROCESS:
        kept = {name: getattr(checkpoint, name) for name in names if hasattr(checkpoint, name)}
        try:
            for name in kept:
                setattr(checkpoint, name, names[name])
            yield
        finally:
            for name, value in kept.items():
                setattr(checkpoint, name, value)
