"""config.json: a configuration dataclass as JSON and back, strictly."""

import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastlatent.files.reading import read_json, reading
from fastlatent.jobs.naming import naming
from fastlatent.models import MODELS, OwnConfig
from fastlatent.presets import TrainConfig

Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values; paths become strings, tuples become lists."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config)}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names that the command line gives them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(form: type[Config], values: Any, where: str = "the configuration") -> Config:
    """The dataclass of type `form` with these values, fields that are missing at their default.

    Raises ValueError for a key that `form` does not have and for a value of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a JSON object; got {values!r}")
    known = {item.name: item for item in fields(form)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}")
    hints = get_type_hints(form)
    arguments = {}
    for name, item in known.items():
        if name in values:
            arguments[name] = _typed(hints[name], values[name], f"{where}: {name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where} lacks the key {name!r}")
    try:
        with naming(None):  # JSON has fields, not options
            return form(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(options, value, where)
    if origin is Literal:
        good = value in options
        expected = "one of " + ", ".join(map(repr, options))
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(options[0], item, where) for item in value)
        good, expected = False, "a list"
    elif is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    elif origin is dict:
        good, expected = isinstance(value, dict), "a JSON object"
    elif hint is Path:
        if isinstance(value, str):
            return Path(value)
        good, expected = False, "a path"
    elif hint is float:
        good, expected = isinstance(value, float | int) and not isinstance(value, bool), "a number"
        value = float(value) if good else value
    else:
        good, expected = type(value) is hint, f"of type {hint.__name__}"
    if not good:
        raise ValueError(f"{where} must be {expected}; got {value!r}")
    return value


def _one_of(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value under the first type of a union that takes it, among models that of its family."""
    if value is None and type(None) in options:
        return None
    if isinstance(value, dict) and "family" in value:
        families = {name: form for name, (form, _) in MODELS.items()} | {"own": OwnConfig}
        if value["family"] not in families:
            raise ValueError(
                f"{where}: family must be one of {', '.join(families)}; got {value['family']!r}"
            )
        options = (families[value["family"]],)
    complaint: ValueError | None = None
    for option in options:
        if option is not type(None):
            try:
                return _typed(option, value, where)
            except ValueError as error:
                complaint = complaint or error
    raise complaint or ValueError(f"{where} must be null; got {value!r}")


def read_config(path: Path) -> TrainConfig:
    """The training configuration in a config.json; ValueError says what is wrong with it."""
    values = read_json(path, "is not valid JSON")
    with reading(path, "holds settings that nothing can be made of"):
        return from_json(TrainConfig, values, str(path))
