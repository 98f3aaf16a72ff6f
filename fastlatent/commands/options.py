"""How dataclasses become options: what --help says of them, and how their values are read."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import json
import operator
import textwrap
import typing
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import (
    MISSING,
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from fastlatent.jobs.spelling import did_you_mean

ARGUMENT = type(tyro.conf.arg())
REGISTRY = ConstructorRegistry()
_COMMON: ContextVar[Collection[str]] = ContextVar("_COMMON", default=())
KINDS = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


@contextlib.contextmanager
def common_fields(names: Collection[str]) -> Iterator[None]:
    """Offer the fields of these names only as options, or all without any name."""
    token = _COMMON.set(names)
    try:
        yield
    finally:
        _COMMON.reset(token)


@REGISTRY.struct_rule
def dataclass_options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The fields of a dataclass, with the docstrings below them as help."""
    if not (isinstance(info.type, type) and dataclasses.is_dataclass(info.type)):
        return None
    types = typing.get_type_hints(info.type, include_extras=True)
    texts = field_docstrings(info.type)
    fields = []
    for field in dataclasses.fields(info.type):
        kind = with_hint(types[field.name])
        default = default_of(field, info.default)
        common = _COMMON.get()
        if common and field.name not in common and not dataclasses.is_dataclass(default):
            kind = Annotated[(kind, tyro.conf.Suppress)]
        fields.append(StructFieldSpec(field.name, kind, default, texts.get(field.name)))
    return StructConstructorSpec(info.type, tuple(fields))


def with_hint(kind: Any) -> Any:
    """The annotation of a field, with `default_hint` beside what else it asks tyro for."""
    kind, *extras = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    given = [extra for extra in extras if isinstance(extra, ARGUMENT)]
    (argument,) = given or [tyro.conf.arg()]
    # Its type is tyro's own.
    assert dataclasses.is_dataclass(argument) and not isinstance(argument, type)
    argument = dataclasses.replace(argument, help_behavior_hint=default_hint)
    return Annotated[(kind, *(extra for extra in extras if extra not in given), argument)]


def default_hint(label: str) -> str:
    """What --help adds on a default; of None and nothing, the text itself says what it means."""
    return "" if label in ("None", "") else f"(default: {label})"


def default_of(field: "dataclasses.Field[Any]", given: Any) -> Any:
    """The field's value in the instance that options start from, else its own default."""
    if given is MISSING:
        return MISSING
    if dataclasses.is_dataclass(given):
        return getattr(given, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING_NONPROP


@functools.cache
def field_docstrings(form: type) -> dict[str, str]:
    """The string below each field of a dataclass and of those it is derived from, in one line."""
    found: dict[str, str] = {}
    for part in reversed(form.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


@REGISTRY.primitive_rule
def plain_value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A number, a text, a path or a choice; what else there is is left to tyro."""
    kind, members = info.type, union_members(info.type)
    if all(get_origin(member) is Literal for member in members):
        choices = {str(choice): choice for member in members for choice in get_args(member)}
        metavar, expected = f"{{{','.join(choices)}}}", f"one of {', '.join(choices)}"
    elif kind in KINDS:
        metavar, expected = kind.__name__.upper(), KINDS[kind]
    else:
        return None

    def read(words: list[str]) -> Any:
        (word,) = words
        try:
            return kind(word) if kind in KINDS else choices[word]
        except (ValueError, KeyError):
            guess = "" if kind in KINDS else did_you_mean(word, choices)
            raise ValueError(f"must be {expected}; got {word!r}{guess}") from None

    def fits(value: Any) -> bool:
        return isinstance(value, kind) if kind in KINDS else value in choices.values()

    return PrimitiveConstructorSpec(1, metavar, read, fits, lambda value: [str(value)])


@REGISTRY.primitive_rule
def json_object(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A dictionary, written as JSON."""
    if get_origin(info.type) is not dict:
        return None

    def read(words: list[str]) -> Any:
        try:
            value = json.loads(words[0])
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"must be a JSON object; got {words[0]!r}")
        return value

    return PrimitiveConstructorSpec(
        1, "JSON", read, lambda value: isinstance(value, dict), lambda value: [json.dumps(value)]
    )


@REGISTRY.primitive_rule
def several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Any number of values of one kind; what is wrong with one of them is said of it."""
    kind, *rest = get_args(info.type) or (None,)
    if get_origin(info.type) is not tuple or rest != [...]:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec) or spec.nargs != 1:
        return None
    return PrimitiveConstructorSpec(
        "*",
        f"{spec.metavar} ...",
        lambda words: tuple(spec.instance_from_str([word]) for word in words),
        lambda value: isinstance(value, tuple) and all(map(spec.is_instance, value)),
        lambda value: [word for part in value for word in spec.str_from_instance(part)],
    )


@REGISTRY.primitive_rule
def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A value that may be None, shown as if it could not; the word None is taken all the same."""
    members = union_members(info.type)
    others = [member for member in members if member is not NoneType]
    if not others or len(others) == len(members):
        return None
    rest: Any = functools.reduce(operator.or_, others)
    rest = Literal[True, False] if rest is bool else rest  # alone it would be --x and --no-x
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(rest, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        spec,
        instance_from_str=lambda words: (
            None if words == ["None"] else spec.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else spec.str_from_instance(value)
        ),
    )


def union_members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
