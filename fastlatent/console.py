"""What every command shares: parsing, errors in one sentence, the device, signals."""

import contextlib
import ctypes
import functools
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError

from fastlatent.ops import KernelMissing
from fastlatent.progress import is_main_process, printable, say

Device = Literal["auto", "cpu", "cuda"]
Parsed = TypeVar("Parsed")
Main = Callable[[Sequence[str] | None], None]

# Signals that end training; the second where it is not ignored, as nohup wants it.
STOPPING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)


class UsageError(Exception):
    """The command was called wrongly: one sentence, exit code 2."""


class RunError(Exception):
    """The command could not do its work: one sentence, exit code 1."""


class Stopped(Exception):
    """A signal ended the command and what it had is saved: one sentence, exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Heard(BaseException):
    """A signal has come inside `Signals.at_once`; no handler of errors is to take it for one."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class Told(Exception):
    """Another process of the command says what is wrong: no sentence, only the exit code."""

    def __init__(self, code: int):
        super().__init__("another process of this command says what is wrong")
        self.code = code


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


def end_by_exception() -> None:
    """Let SIGTERM and SIGHUP end the process by Heard, so that nothing half made is left behind."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _raise_heard)


def _raise_heard(number: int, _frame: object) -> None:
    raise Heard(number)


def command(main: Main | None = None, *, shared: bool = False) -> Callable[..., Any]:
    """Turn `main(argv)` into a command that returns its exit code and explains failures.

    Expected failures become one sentence on stderr; FASTLATENT_TRACEBACK=1 shows where they arose.
    With the arguments of the process, it is the process's own and may set how memory is kept. There
    only commands whose work is `shared` do anything in any process but the first of a launcher.
    """
    if main is None:
        return functools.partial(command, shared=shared)

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            if argv is None:
                keep_freed_memory()
                end_by_exception()
                count = int(os.environ.get("WORLD_SIZE", "1"))
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
            if _computing_failure(error) is None:
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
    if is_main_process() or code != 2:
        where = "" if is_main_process() else f" (rank {os.environ['RANK']})"
        print(f"error{where}: {printable(sentence_of(error))}", file=sys.stderr, flush=True)
    return code


def sentence_of(error: BaseException) -> str:
    """What went wrong, in one sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory"
    return _computing_failure(error) or " ".join(str(error).split()) or type(error).__name__


def _computing_failure(error: BaseException) -> str | None:
    """The sentence for an error of PyTorch that lies in the machine and not in the program."""
    text = str(error).strip()
    first = text.split("\n", 1)[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {first}"
    if "DefaultCPUAllocator" in text or "not enough memory" in text:
        return f"out of memory: {first.rpartition('DefaultCPUAllocator: ')[2]}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile does not work here: {first}"
    return None


def parse(
    form: type[Parsed],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    default: Parsed | None = None,
) -> Parsed:
    """The command line as a dataclass of type `form`; what does not fit is a UsageError."""
    import tyro

    from fastlatent.options import REGISTRY

    complaint = io.StringIO()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        with contextlib.redirect_stderr(complaint), REGISTRY:
            return tyro.cli(
                form,
                prog=f"python -m fastlatent.{prog}",
                description=description,
                args=arguments,
                **({} if default is None else {"default": default}),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except ValueError as error:  # a configuration's own check
        raise UsageError(f"{error} (see --help)") from None
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise UsageError(f"{_unboxed(complaint.getvalue())} (see --help)") from None


def _unboxed(box: str) -> str:
    """The sentence in tyro's framed message, which its rules divide into sections."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        words = line.strip("│ ")
        if re.match(r"[─╭╰-]{2}", words):
            sections.append([])
        elif words:
            sections[-1].append(words)
    # A title, the message, what else there is to say.
    if len(sections) < 3:
        return " ".join(box.split())
    message = " ".join(sections[1]).rstrip(".")
    # Of an option tyro names the option, of a whole form its class.
    return re.sub(r"^Error parsing (?:[A-Z]+[a-z]\w*: )?", "", message)


def choose_device(device: Device) -> torch.device:
    """The device to compute on; RunError when CUDA is asked for and not there."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RunError("--device cuda was asked for, but PyTorch sees no CUDA GPU here")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


class Signals:
    """Ctrl-C, SIGHUP, SIGTERM and SIGUSR1 as a wish to be met at the next good moment.

    That is the end of a step, and any moment inside `at_once`. Schedulers send the last of them
    some time before they end a job, and a terminal that closes sends SIGHUP. A second Ctrl-C ends a
    lone process at once; launchers of several send signals twice. Outside the main thread, where
    Python hears no signals, it leaves them alone.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal ends by Heard, also one that came before: work to be done again.

        Processes that work together go on to where they ask each other.
        """
        before, self._at_once = self._at_once, self._alone
        try:
            if self._at_once and self.received is not None:
                raise Heard(self.received)
            yield
        finally:
            self._at_once = before

    @property
    def _alone(self) -> bool:
        return os.environ.get("WORLD_SIZE", "1") == "1"

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: of a library in C, which can't be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, _frame: object) -> None:
        if self.received is not None and number == signal.SIGINT and self._alone:
            raise KeyboardInterrupt
        if self.received is None:
            when = "" if self._at_once else " after this step"
            more = "; Ctrl-C again quits without saving" if self._alone else ""
            # Straight to the descriptor: print is not safe inside a signal handler.
            with contextlib.suppress(OSError):
                os.write(2, f"stopping{when}{more}\n".encode())
        self.received = number
        if self._at_once:
            raise Heard(number)
