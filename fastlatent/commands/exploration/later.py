"""Long tasks of a page, which a thread does while the page lives on."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from bokeh.document import Document

from fastlatent.commands.exploration.subject import Subject

Result = TypeVar("Result")


class Later:
    """A view's long task; a new one takes the place of the last.

    The thread is shared by all pages of a subject. Where results come faster than they are shown,
    the newest is.
    """

    def __init__(
        self, subject: Subject, document: Document, guarded: Callable[..., Callable[[], None]]
    ):
        self._subject, self._document, self._guarded = subject, document, guarded
        self._turn = 0
        document.on_session_destroyed(lambda context: self.stop())

    def stop(self) -> None:
        """Let the task end with its next result, which nobody sees."""
        self._turn += 1

    def start(
        self,
        task: Callable[[], Iterator[Result]],
        show: Callable[[Result], None],
        every: bool = False,  # show each result, where each counts
    ) -> None:
        """Begin a task, and show its results in the page's own thread."""
        self.stop()
        turn = self._turn
        waiting: deque[Result] = deque()

        def shown() -> None:
            while waiting:
                result = waiting.popleft()  # one at a time: the thread goes on
                if turn == self._turn and (every or not waiting):
                    show(result)

        def fail(error: Exception) -> None:
            if turn == self._turn:
                raise error

        def run() -> None:
            try:
                for result in task() if turn == self._turn else ():
                    if turn != self._turn or self._subject.closed:
                        return
                    waiting.append(result)
                    self._next(shown)
            except Exception as error:
                self._next(partial(fail, error))

        self._subject.pool.submit(run)

    def _next(self, action: Callable[[], Any]) -> None:
        """What Bokeh lets other threads do."""
        self._document.add_next_tick_callback(self._guarded(action))
