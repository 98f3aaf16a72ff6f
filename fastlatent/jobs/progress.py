"""How far a long job is: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

from fastlatent.jobs.ranks import is_main_process

Item = TypeVar("Item")

PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal
BAR_SECONDS = 1.0  # that a job inside another one takes before it gets a bar of its own


class Progress:
    """The progress of one job, shown on rank 0 only.

    One job may run inside another; their bars stand below each other.
    """

    _screen: ClassVar[Any] = None  # the rich display that the outermost job opened

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "step"):
        self.title, self.total, self.unit = title, total, unit
        self.first = self.done = done
        self.began = self.spoke = time.monotonic()
        self._active = is_main_process()
        self._task: Any = None
        self._opened = False
        self.note = ""  # loss and rate, shown with the next advance

    def __enter__(self) -> "Progress":
        if self._active and sys.stdout.isatty() and Progress._screen is None:
            self._open_screen()
            self._add_bar()
        return self

    def _add_bar(self) -> None:
        self._task = Progress._screen.add_task(
            printable(self.title), total=self.total, completed=self.done, note="", left=""
        )

    def _open_screen(self) -> None:
        from rich import progress as rich

        Progress._screen = rich.Progress(
            # Names of files may look like markup.
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=20),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[note]}"),
            rich.TextColumn("{task.fields[left]}"),
            transient=True,
        )
        Progress._screen.start()
        self._opened = True

    def __exit__(self, *_: object) -> None:
        # After an exception, a generator's job may be closed after the one that it ran in.
        if self._task is not None and Progress._screen is not None:
            Progress._screen.remove_task(self._task)
        if self._opened:
            Progress._screen.stop()
            Progress._screen = None

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        seconds = time.monotonic() - self.began
        if self._task is None and Progress._screen is not None and seconds > BAR_SECONDS:
            self._add_bar()
        if self._task is not None:
            Progress._screen.update(
                self._task,
                description=printable(self.title),
                completed=self.done,
                note=self.note,
                left=f"{self._left()} left",
            )
        elif self._active and time.monotonic() - self.spoke >= PLAIN_SECONDS:
            self.spoke = time.monotonic()
            parts = [f"{self.title}: {self.unit} {self.done}/{self.total}", self.note]
            say("  ".join(filter(None, [*parts, f"{self._left()} left"])))

    def _left(self) -> str:
        worked = self.done - self.first
        if not worked:
            return "?"
        seconds = (time.monotonic() - self.began) / worked * (self.total - self.done)
        return format_seconds(seconds)


def track(items: Iterable[Item], title: str, total: int, unit: str = "batch") -> Iterator[Item]:
    """`items`, with their progress shown."""
    with Progress(title, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


class Stopwatch:
    """How many a second, leaving out the time between `pause` and `go`."""

    def __init__(self) -> None:
        self.count = 0
        self._seconds = 0.0
        self._since: float | None = time.monotonic()

    def pause(self) -> None:
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    def go(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def read(self) -> float:
        """The rate since the last reading, or since the beginning."""
        rate = self.count / self._seconds if self._seconds else 0.0
        self.count, self._seconds = 0, 0.0
        return rate


def say(line: str = "") -> None:
    """Print a line, once for all ranks, above whatever bar is on the screen."""
    line = printable(line)
    if Progress._screen is not None:
        console = Progress._screen.console
        line = spelled(line, console.encoding)
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    elif is_main_process():
        try:
            print(spelled(line, sys.stdout.encoding), flush=True)
        except BrokenPipeError:
            # The reader of our output has left: the work goes on unheard, and exit stays silent.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spelled(text: str, encoding: str | None) -> str:
    """The text in the letters of an encoding: +/- and escapes for what ASCII does not have."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        plain = text.replace("\N{PLUS-MINUS SIGN}", "+/-")
        return plain.encode(encoding, "backslashreplace").decode(encoding)


def printable(text: str) -> str:
    """The text as a terminal can show it: what commands a terminal is spelled out.

    Names of files and fields may hold escape sequences, and bytes that are no text.
    """
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def format_seconds(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
