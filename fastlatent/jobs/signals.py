"""Signals, heard at a good moment or at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from fastlatent.jobs.errors import Heard
from fastlatent.jobs.ranks import launched

# Signals that end training; the second where it is not ignored, as nohup wants it.
STOPPING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)


def end_by_exception() -> None:
    """Let SIGTERM and SIGHUP end the process by Heard, so that nothing half made is left behind."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _raise_heard)


def _raise_heard(number: int, _frame: object) -> None:
    raise Heard(number)


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
        return launched() == 1

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
