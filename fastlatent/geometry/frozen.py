"""A decoder as a pure function of its latents, with frozen parameters."""

import contextlib
import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.spectral_norm import SpectralNorm

from fastlatent.geometry.precision import plain_attention

Decoder = nn.Module | Callable[[Tensor], Any]


class LatentFunction(Protocol):
    """Mean (n, ...) and variance (n, ...) or None, from latents (n, d)."""

    role: str  # its name in messages

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor | None]: ...


class FrozenDecoder:
    """The mean and, where there is one, the variance that a decoder gives for latents.

    Parameters of the decoder, and of modules that it holds or refers to, take part without
    gradients. Raises ValueError when one of them is in a mode in which the output depends on the
    batch or on chance.
    """

    def __init__(self, decoder: Decoder, role: str = "decoder"):
        if not callable(decoder):
            raise TypeError(
                f"{role}: expected a module, a function of latents or a Metric; "
                f"got {type(decoder).__name__}"
            )
        self.role = role
        # A compiled module can be neither recorded nor transformed; this is what it was made from.
        self._holder = _Holder(getattr(decoder, "_orig_mod", decoder))
        check_evaluation_mode(self._holder, role)
        holder = self._holder
        parameters, buffers = dict(holder.named_parameters()), dict(holder.named_buffers())
        trained = any(parameter.requires_grad for parameter in parameters.values())
        self._frozen = {n: p.detach() for n, p in parameters.items()} if trained else {}
        with torch.inference_mode(False):  # tensors that are made in it have no part in derivatives
            for name, tensor in (parameters | buffers).items():
                if tensor.is_inference():
                    self._frozen[name] = tensor.detach().clone()
            if any(part.training for part in holder.modules()):
                # Whatever writes to its buffers in training mode gets others to write to.
                self._frozen |= {name: buffer.detach().clone() for name, buffer in buffers.items()}

    def raw(self, z: Tensor) -> Any:
        """What the decoder returns."""
        with plain_attention():
            if not self._frozen:
                return self._holder(z)
            return torch.func.functional_call(self._holder, self._frozen, (z,))

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean (n, ...) and variance (n, ...), the latter None where it does not depend on z."""
        output = self.raw(z)
        parts = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(parts) not in (1, 2) or not isinstance(parts[0], Tensor):
            raise TypeError(
                f"{self.role}: expected a tensor or a pair (mean, variance) as its output; "
                f"got {_describe(output)}"
            )
        return parts[0], parts[1] if len(parts) == 2 and isinstance(parts[1], Tensor) else None


def check_evaluation_mode(module: nn.Module, role: str) -> None:
    """Raises ValueError if some part of `module` computes otherwise in training than in use."""
    for name, part in module.named_modules():
        fault = _fault(part)
        if fault:
            name = f"{role}.{name.partition('.')[2]}".rstrip(".")
            raise ValueError(f"{role}: {name} ({type(part).__name__}) {fault}")


def _fault(part: nn.Module) -> str | None:
    if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
        if part.running_mean is None:
            return "has no running statistics, so the output of a latent depends on its batch"
        return (
            "is in training mode, so the output of a latent depends on its batch; call .eval() "
            "on the decoder first"
        )
    if not part.training:
        return None
    if isinstance(part, _DropoutNd) and part.p > 0:
        return "is in training mode, so the output is random; call .eval() on the decoder first"
    hooks = part._forward_pre_hooks.values()
    if isinstance(part, torch.nn.utils.parametrizations._SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in hooks
    ):
        return (
            "has spectral norm in training mode, so that each pass changes the weights; "
            "call .eval() on the decoder first"
        )
    return None


class _Holder(nn.Module):
    """Calls a function, and holds the modules it refers to."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function if not isinstance(function, nn.Module) else None
        for number, module in enumerate(dict.fromkeys(_modules_of(function))):
            self.add_module(f"part{number}", module)
        self.training = False

    def forward(self, z: Tensor) -> Any:
        return self.part0(z) if self.function is None else self.function(z)


# How far what holds modules is followed: from a function to another one, on to an object, to a list
# in it. Library functions refer to others without end.
_REACH = 3


def _modules_of(held: object, reach: int = _REACH) -> Iterator[nn.Module]:
    """The module itself, or those that a function, an object or a container refers to."""
    if isinstance(held, nn.Module):
        yield held
    elif reach:
        for part in _parts(held):
            yield from _modules_of(part, reach - 1)


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


class Deviation:
    """The standard deviation of a stochastic decoder alone."""

    def __init__(self, decoder: LatentFunction):
        self.role = decoder.role
        self._decoder = decoder

    def __call__(self, z: Tensor) -> tuple[Tensor, None]:
        variance = self._decoder(z)[1]
        assert variance is not None
        return standard_deviation(variance), None


class Composition:
    """A feature map of the mean of a decoder."""

    def __init__(self, decoder: LatentFunction, feature_map: LatentFunction):
        self.role = f"{feature_map.role} of the {decoder.role}"
        self._decoder, self._feature_map = decoder, feature_map

    def __call__(self, z: Tensor) -> tuple[Tensor, None]:
        return self._feature_map(self._decoder(z)[0])[0], None


def standard_deviation(variance: Tensor) -> Tensor:
    """The root, with derivative 0 where the variance is 0."""
    zero = variance == 0
    return variance.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _describe(output: object) -> str:
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} of length {len(output)}"
    return type(output).__name__
