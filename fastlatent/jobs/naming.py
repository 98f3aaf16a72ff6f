"""What messages call a setting: the argument to a caller in Python, the option in a command."""

import contextlib
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

# One for the process and not for each thread, since threads that read images raise errors too.
_options: Mapping[str, str] | None = None  # options of other names than settings; None: Python


@contextlib.contextmanager
def naming(options: Mapping[str, str] | None) -> Iterator[None]:
    """Name settings in messages as options, or with None as arguments.

    `options` are those whose names differ from their settings', such as {"data.root": "--root"}.
    """
    global _options
    before, _options = _options, options
    try:
        yield
    finally:
        _options = before


def setting(name: str, value: object = None, *, argument: str | None = None) -> str:
    """A setting, and its value where one is given, as the reader of a message writes it.

    `setting("data.size", 28)` is `data.size=28` in Python and `--data.size 28` in a command.
    `argument` is the name in Python, where that differs.
    """
    if _options is None:
        name = argument or name
        return name if value is None else f"{name}={value!r}"
    option = _options.get(name) or f"--{name.replace('_', '-')}"
    if value is None or value is True:
        return option
    return f"{option} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def call_or_command(call: str, command: str) -> str:
    """What to do next: a call for a caller in Python, a command line for a command's user."""
    return call if _options is None else command


def name_of(config: Any, name: str, value: object = None) -> str:
    """A field of a configuration, whose class says in `OPTIONS` where its options lie."""
    return setting(f"{config.OPTIONS}{name}", value, argument=name)


def require(good: bool, config: Any, name: str, expectation: str) -> None:
    """ValueError unless `good`; it names the field of the configuration and what it must be."""
    if not good:
        in_python = _options is None and config.OPTIONS
        owner = f"{type(config).__name__}: " if in_python else ""
        got = attrgetter(name)(config)
        raise ValueError(f"{owner}{name_of(config, name)} must be {expectation}; got {got!r}")


def require_word(config: Any, name: str, words: tuple[str, ...]) -> None:
    """ValueError unless the field of the configuration holds one of the words."""
    require(getattr(config, name) in words, config, name, f"one of {', '.join(words)}")
