"""The server of the page: to this machine alone, at an address that holds a secret."""

import logging
import secrets

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from fastlatent.commands.exploration.page import Page
from fastlatent.commands.exploration.subject import Subject
from fastlatent.jobs.errors import RunError

HOST = "127.0.0.1"
MESSAGE = 256 << 20  # bytes of an image file that is handed in, as text of 4 characters to 3 bytes
FORGET = 5_000  # milliseconds after which a closed tab's state is freed


class Server:
    """Serves a page with a state of its own to each tab; nothing is served without the token."""

    def __init__(self, subject: Subject, port: int = 0):
        try:
            sockets, port = bind_sockets(HOST, port)
        except OSError as error:
            raise RunError(f"--port must be a free one; {port} is not: {error.strerror}") from None
        token = secrets.token_urlsafe(24)
        self.address = f"http://{HOST}:{port}/{token}/"
        # It tells of every request, and the command's own lines are enough.
        logging.getLogger("bokeh").setLevel(logging.ERROR)

        def show(document: Document) -> None:
            Page(subject, document)

        application = BokehTornado(
            {"/": Application(FunctionHandler(show))},
            prefix=token,
            extra_websocket_origins=[f"{HOST}:{port}"],
            websocket_max_message_size_bytes=MESSAGE,
            unused_session_lifetime_milliseconds=FORGET,
            check_unused_sessions_milliseconds=FORGET,
        )
        http = HTTPServer(application)
        http.add_sockets(sockets)
        self._server = BaseServer(IOLoop.current(), application, http)
        self._server.start()

    def run(self) -> None:
        """Serve until Ctrl-C, which ends it well."""
        try:
            self._server.io_loop.start()
        except KeyboardInterrupt:
            pass
        finally:
            self._server.stop()

    def stop(self) -> None:
        """Let `run` come to its end; for other threads."""
        loop = self._server.io_loop
        loop.add_callback(loop.stop)
