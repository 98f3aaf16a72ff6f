"""Models of the user's own: their configuration, how they are built again, and what they must do.

A run records the class by name and the arguments that it was built with, as JSON. The class itself
comes from code that the user names.
"""

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlatent import nn as blocks
from fastlatent import priors
from fastlatent.files.code import Code, name_of, registered
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.naming import setting
from fastlatent.models.base import LatentModel
from fastlatent.noise import Noise

PLAIN = (bool, int, float, str, type(None))
PROBED = 4  # images by which a model is tried


@dataclass(frozen=True)
class OwnConfig:
    """What it takes to build a model of the user's own."""

    family: Literal["own"] = "own"
    """Kind of model: one of your own."""
    code: str = ""
    """The class, as module:Class."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of the images."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class, as JSON."""

    @property
    def title(self) -> str:
        """What the model is called: its class."""
        return self.code.rpartition(":")[2]

    @property
    def likelihood(self) -> Any:
        """The likelihood of the pixels, where the class has that argument."""
        return self.arguments.get("likelihood")


def build_own(config: OwnConfig, code: Code) -> LatentModel:
    """The model with fresh weights; UsageError where its code is not named or no longer fits."""
    builder = _Builder(code)
    form = builder.named(config.code)
    if not _is_class(form, nn.Module):
        raise UsageError(f"{config.code} must be a class of models; it is {_kind(form)}")
    return builder.made(config.code, completed(form), config.arguments)


def registered_config(name: str) -> OwnConfig | None:
    """The configuration of a model that an installed package registers, as built by default.

    None where nothing is registered by that name; ValueError where it cannot be built so.
    """
    point = registered(("fastlatent.models",)).get(name)
    if point is None:
        return None
    form = Code().find(point.value)
    if not _is_class(form, nn.Module):
        raise ValueError(f"the model {name}, which {point.value} registers, must be a class")
    try:
        model = completed(form)()
    except TypeError as error:
        raise ValueError(
            f"the model {name} must be one that is built without arguments; {error}"
        ) from error
    check_attributes(model)
    return replace(recorded(model)[0], code=point.value)


# A model as JSON


def recorded(model: Any) -> tuple[OwnConfig, Code]:
    """The configuration that builds the model again, and the code that this takes.

    The value of each argument of a class is that of the module's attribute of the same name.
    Raises ValueError where an argument cannot be told so, or is no JSON value, class or module.
    """
    things: list[Any] = []
    entry = _entry(model, things)
    shape = tuple(int(side) for side in model.image_shape)
    c, h, w = shape
    return OwnConfig("own", entry["code"], (c, h, w), entry["arguments"]), Code(things=things)


def code_of(model: Any) -> Code:
    """The code of a model, of a class, or of several of these."""
    if isinstance(model, Code):
        return model
    things: list[Any] = []
    for one in model if isinstance(model, (tuple, list)) else (model,):
        if isinstance(one, nn.Module):
            _entry(one, things)
        elif isinstance(one, type):
            things.append(one)
        else:
            raise TypeError(f"load: model must be a class or a module; got {_kind(one)}")
    return Code(things=things)


def _entry(thing: Any, things: list[Any]) -> dict[str, Any]:
    """A module or dataclass by its class and arguments; the classes go into `things`."""
    form: Any = getattr(type(thing), "completes", type(thing))
    if form in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        parts = {name: _json(part, name, things) for name, part in thing.named_children()}
        return {"code": f"torch.nn:{form.__name__}", "parts": parts}
    name = _reference(form, things)
    arguments = {}
    for argument in signature(form).parameters.values():
        if argument.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        found = _given(thing, argument)
        if found is not Parameter.empty:
            arguments[argument.name] = _json(found, f"{form.__name__}: {argument.name}", things)
    return {"code": name, "arguments": arguments}


def _given(thing: Any, argument: Parameter) -> Any:
    """The value of an argument; empty for one that is left at its default."""
    name = argument.name
    if isinstance(thing, nn.Module) and type(thing).__module__.startswith("torch.nn."):
        if name in ("device", "dtype"):
            return Parameter.empty
        if name == "bias" and hasattr(thing, "bias"):
            return thing.bias is not None
    if hasattr(thing, name):
        return getattr(thing, name)
    if argument.default is Parameter.empty:
        raise ValueError(
            f"{type(thing).__name__} must keep its argument {name} as an attribute of that name, "
            "so that a run can record it"
        )
    return Parameter.empty


def _json(value: Any, where: str, things: list[Any]) -> Any:
    """A value as JSON; what JSON has no form for is an object with one word that says its kind."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list):
        return [_json(item, where, things) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_json(item, where, things) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _json(item, where, things) for key, item in value.items()}}
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return {"name": _reference(value, things)}
    if isinstance(value, nn.Module) or is_dataclass(value):
        return _entry(value, things)
    raise ValueError(
        f"{where} must be a number, text, list, dictionary, class, module or dataclass, so that a "
        f"run can record it; got {_kind(value)}"
    )


def _reference(thing: Any, things: list[Any]) -> str:
    for name, holder in _trusted().items():
        short = getattr(thing, "__name__", "")
        if short and getattr(holder, short, None) is thing:
            return f"{name}:{short}"
    name = name_of(thing)
    things.append(thing)
    return name


class _Builder:
    """Makes values of their JSON, with the code that the user has named."""

    def __init__(self, code: Code):
        self.code = code

    def value(self, entry: Any) -> Any:
        if isinstance(entry, list):
            return [self.value(item) for item in entry]
        if not isinstance(entry, dict):
            return entry
        match entry:
            case {"tuple": items}:
                return tuple(self.value(item) for item in items)
            case {"dict": items}:
                return {key: self.value(item) for key, item in items.items()}
            case {"name": name}:
                return self.named(name)
            case {"code": name, "parts": items}:
                return self.container(name, {key: self.value(x) for key, x in items.items()})
            case {"code": name, "arguments": items}:
                return self.made(name, self.named(name), items)
        raise UsageError(f"a model of one's own is recorded by what is no such thing: {entry}")

    def made(self, name: str, form: Any, arguments: dict[str, Any]) -> Any:
        if not isinstance(form, type):
            raise UsageError(f"{name} must be a class; it is {_kind(form)}")
        given = {key: self.value(item) for key, item in arguments.items()}
        try:
            return form(**given)
        except TypeError as error:
            raise UsageError(f"{name} cannot be built as the run records it: {error}") from error

    def container(self, name: str, parts: dict[str, Any]) -> nn.Module:
        form = {"Sequential": nn.Sequential, "ModuleList": nn.ModuleList}.get(name[9:])
        if form is None:
            return nn.ModuleDict(parts)
        made = form()
        for key, part in parts.items():
            made.add_module(key, part)
        return made

    def named(self, name: str) -> Any:
        holder, _, short = name.partition(":")
        trusted = _trusted().get(holder)
        if trusted is not None:
            thing = getattr(trusted, short, None)
            harmless = callable(thing) if trusted is nn.functional else _is_class(thing, nn.Module)
            if harmless or (isinstance(thing, type) and is_dataclass(thing)):
                return thing
        thing = self.code.find(name)
        if thing is None:
            raise UsageError(
                f"the run needs the code of {name}, which runs only where it is named: give "
                f"{setting('model_from', 'FILE.py')}, or the name of an installed module"
            )
        return thing


def _is_class(thing: Any, base: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, base)


@cache
def _trusted() -> dict[str, types.ModuleType]:
    """Modules whose blocks any run may name."""
    from fastlatent import models

    return {
        "torch.nn": nn,
        "torch.nn.functional": nn.functional,
        "fastlatent.nn": blocks,
        "fastlatent.priors": priors,
        "fastlatent.models": models,
    }


# The contract


@cache
def completed(form: Any) -> type[LatentModel]:
    """The class as a LatentModel: itself, or a plain module's with what it leaves out.

    A plain module has image_shape, latent_dim, encode, decode and a forward(x) that returns the
    losses (n,), or a dictionary with "loss". Latents are real unless latent_kind is "bits", and
    the unit of the loss is that of loss_unit.
    """
    if issubclass(form, LatentModel):
        return form
    for name in ("forward", "encode", "decode"):
        if not callable(getattr(form, name, None)) or form.forward is nn.Module.forward:
            raise ValueError(
                f"train: {form.__name__} must have forward, encode and decode; it lacks {name}"
            )
    takes = signature(form.forward).parameters

    def forward(
        self: Any, x: Tensor, target: Tensor | None = None, noise: Noise | None = None
    ) -> dict[str, Tensor]:
        given = {"target": target, "noise": noise}
        values = form.forward(self, x, **{k: v for k, v in given.items() if k in takes})
        return {"loss": values} if isinstance(values, Tensor) else values

    body: dict[str, Any] = {"forward": forward, "completes": form, "__module__": form.__module__}
    body |= {"latent_kind": getattr(form, "latent_kind", "real")}
    body |= {"loss_unit": getattr(form, "loss_unit", "per image")}
    return type(form.__name__, (form, LatentModel), body)


def twin_of(model: Any, config: OwnConfig, code: Code) -> LatentModel:
    """The model built again from its configuration, with its weights; it is left as it is.

    Raises ValueError where it breaks the contract, or where the twin computes other numbers.
    """
    name = type(model).__name__
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    with torch.random.fork_rng():
        twin = build_own(config, code)
    other = twin.state_dict()
    if {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in state.items()}:
        raise ValueError(
            f"train: {name} built again from the values of its arguments has other weights; each "
            "argument of __init__ must be kept, as it is given, in an attribute of its name"
        )
    twin.load_state_dict(state)
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    twin.to(device)
    x = torch.rand(PROBED, *config.image_shape, generator=torch.Generator().manual_seed(0))
    x = (x * 255).round().div(255).to(device)
    was = {part: part.training for part in model.modules()}
    try:
        for mode in (False, True):
            first = list(_probed(model.train(mode), x))
            second = list(_probed(twin.train(mode), x))
            if not all(map(_same, first, second)):
                raise ValueError(
                    f"train: {name} built again from the values of its arguments computes other "
                    "numbers; each argument of __init__ must be kept, as it is given, in an "
                    "attribute of its name"
                )
    finally:
        model.load_state_dict(state)
        for part, training in was.items():
            part.training = training
    twin.load_state_dict(state)
    return twin


def _probed(model: Any, x: Tensor) -> Iterator[Tensor]:
    """What the model gives for images, checked against the contract."""
    form: Any = type(model)
    name, n, form = form.__name__, len(x), completed(form)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        values = form.forward(model, x, noise=Noise(0, 0))
        expected = f"train: forward of {name} must return losses (n,), or a dictionary of such with"
        if not isinstance(values, dict) or "loss" not in values:
            raise ValueError(f'{expected} "loss"; got {_kind(values)}')
        for key, value in values.items():
            if not isinstance(value, Tensor) or value.shape != (n,):
                shape = tuple(value.shape) if isinstance(value, Tensor) else _kind(value)
                raise ValueError(f'{expected} "loss"; got {shape} as {key!r} of {n} images')
        yield from values.values()
        z = model.encode(x)
        yield _checked(f"train: encode of {name}", z, (n, model.latent_dim))
        yield _checked(f"train: decode of {name}", model.decode(z), x.shape)


def _checked(what: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else _kind(value)
        raise ValueError(f"{what} must give a tensor {tuple(shape)}; got {got}")
    return value


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def check_attributes(model: Any) -> None:
    """ValueError or TypeError for a model that does not tell its shapes."""
    name = type(model).__name__
    form: Any = type(model)
    completed(getattr(form, "completes", form))
    shape = getattr(model, "image_shape", None)
    whole = isinstance(shape, (tuple, list, torch.Size)) and len(shape) == 3
    if not whole or not all(type(side) is int and side > 0 for side in shape or ()):
        raise ValueError(
            f"train: {name} must have image_shape, the (channels, height, width) of its images; "
            f"got {shape!r}"
        )
    dim = getattr(model, "latent_dim", None)
    if type(dim) is not int or dim < 1:
        raise ValueError(f"train: {name} must have latent_dim, a whole number; got {dim!r}")
    kind = getattr(model, "latent_kind", "real")
    if kind not in ("real", "bits"):
        raise ValueError(f"train: latent_kind of {name} must be 'real' or 'bits'; got {kind!r}")


def run_name(model: nn.Module) -> str:
    """What a run of the model is called."""
    return re.sub(r"[^\w.-]+", "-", type(model).__name__.lower())


def _kind(value: object) -> str:
    return type(value).__name__
