"""What every command shares: parsing, exit codes, errors in one sentence."""

import contextlib
import ctypes
import functools
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from safetensors import SafetensorError

from fastlatent.jobs.environment import check_environment
from fastlatent.jobs.errors import (
    Heard,
    LaunchError,
    RunError,
    Stopped,
    Told,
    UsageError,
    computing_failure,
    sentence_of,
)
from fastlatent.jobs.loading import clear_loading
from fastlatent.jobs.naming import naming
from fastlatent.jobs.progress import printable, say
from fastlatent.jobs.ranks import is_main_process, launched
from fastlatent.jobs.signals import end_by_exception
from fastlatent.ops import KernelMissing

Parsed = TypeVar("Parsed")
Main = Callable[[Sequence[str] | None], None]

# Settings of training that other commands call otherwise, or leave to it.
OUTSIDE_TRAINING = MappingProxyType(
    {
        "data.root": "--root",
        "data.download": "--data.download of train",
        "data.size": "--data.size of train",
    }
)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GiB, or its 32 MiB before 2.35; elsewhere do nothing.

    A model frees and takes the same megabytes again and again. From the system each page comes
    empty, at a fault of its own: up to half of the time of a command.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as in malloc.h
        if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20):
            mallopt(trim_threshold, (1 << 31) - 1)


def command(
    main: Main | None = None,
    *,
    shared: bool = False,
    options: Mapping[str, str] = OUTSIDE_TRAINING,
) -> Callable[..., Any]:
    """Turn `main(argv)` into a command that returns its exit code and explains failures.

    Expected failures become one sentence on stderr; FASTLATENT_TRACEBACK=1 shows where they arose.
    With the arguments of the process, it is the process's own and may set how memory is kept. There
    only commands whose work is `shared` do anything in any process but the first of a launcher.
    Messages name settings as options, those in `options` by these names.
    """
    if main is None:
        return functools.partial(command, shared=shared, options=options)

    @functools.wraps(main)
    @naming(options)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            check_environment(main.__module__, shared)
            if argv is None:
                clear_loading()
                keep_freed_memory()
                end_by_exception()
                count = launched()
                if not shared and count > 1:
                    say(f"note: one process does all of this, the first of {count}")
                    if not is_main_process():
                        return 0
            main(argv)
        except UsageError as error:
            return _fail(error, 2)
        except Told as told:
            return told.code
        except Heard as heard:
            return 128 + heard.signal_number
        except Stopped as error:
            if is_main_process():
                with contextlib.suppress(OSError):  # a terminal that has gone, as SIGHUP tells
                    print(printable(str(error)), file=sys.stderr, flush=True)
            return 128 + error.signal_number
        except BrokenPipeError:
            # The reader of our output has left; point stdout elsewhere so that exit stays silent.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (
            RunError,
            OSError,
            ValueError,
            SafetensorError,
            MemoryError,
            OverflowError,
            KernelMissing,
        ) as error:
            return _fail(error, 1)
        except RuntimeError as error:
            if computing_failure(error) is None:
                raise
            return _fail(error, 1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else 0
        return 0

    return run


def _fail(error: BaseException, code: int) -> int:
    if os.environ.get("FASTLATENT_TRACEBACK") == "1":
        traceback.print_exception(error)
    if is_main_process() or code != 2 or isinstance(error, LaunchError):
        where = "" if is_main_process() else f" (rank {os.environ['RANK']})"
        print(f"error{where}: {printable(sentence_of(error))}", file=sys.stderr, flush=True)
    return code


def parse(
    form: type[Parsed],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    default: Parsed | None = None,
    common: Collection[str] = (),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Parsed:
    """The command line as a dataclass of type `form`; what does not fit is a UsageError.

    --help shows the fields of the names in `common`, --help-all shows all. `renamed` are earlier
    names of options, such as {"--n": "--images"}, which stand for their new names; that is said.
    """
    import tyro

    from fastlatent.commands.options import REGISTRY, common_fields

    complaint = io.StringIO()
    arguments = sys.argv[1:] if argv is None else list(argv)
    short = common if {"-h", "--help"} & {*arguments} else ()
    arguments = _renamed(arguments, renamed)
    arguments = ["--help" if word == "--help-all" else word for word in arguments]
    try:
        with contextlib.redirect_stderr(complaint), REGISTRY, common_fields(short):
            return tyro.cli(
                form,
                prog=f"python -m fastlatent.{prog}",
                description=description,
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except ValueError as error:  # a configuration's own check
        raise UsageError(f"{error} (see --help)") from None
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise UsageError(f"{_unboxed(complaint.getvalue())} (see --help)") from None


def _renamed(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The words of a command line with options under their new names, noting each earlier one."""
    found, noted = [], set()
    for word in words:
        option, equals, value = word.partition("=")
        earlier = option.replace("_", "-")
        if earlier in names and earlier not in noted and is_main_process():
            print(f"note: {earlier} is now {names[earlier]}", file=sys.stderr)
            noted.add(earlier)
        found.append(f"{names.get(earlier, option)}{equals}{value}")
    return found


def _unboxed(box: str) -> str:
    """The sentence in tyro's framed message, which its rules divide into sections."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        words = line.strip("│ ")
        if re.match(r"[╭╰]|[─-]{20,}$", words):  # options begin with two
            sections.append([])
        elif words:
            sections[-1].append(words)
    # A title, the message, what else there is to say.
    if len(sections) < 3:
        return " ".join(box.split())
    message = " ".join(sections[1]).rstrip(".")
    if message.startswith("Unrecognized options: "):
        return _unknown(message.partition(": ")[2].split(", "), sections[2:])
    # Of an option tyro names the option, of a whole form its class or its place; that form itself
    # names the option.
    return re.sub(r"^Error parsing (?:[A-Z]+[a-z]\w*: |[\w.]+: (?=--))?", "", message)


def _unknown(words: Sequence[str], hints: Sequence[Sequence[str]]) -> str:
    """What is said of words that no option takes, by what tyro finds close to each of them."""
    unknown = [word for word in words if word.startswith("--")]
    if not unknown:
        return f"there is no place for {', '.join(words)}"
    close = sorted(
        hint[1].split()[0].rstrip(",")
        for hint in hints  # in no certain order
        if len(hint) > 1 and hint[0].startswith(("Perhaps you meant", "Arguments similar to"))
    )
    guess = f"; did you mean {' and '.join(close)}?" if close else ""
    return f"there is no option {', '.join(unknown)}{guess}"
