"""Waitress with a bound on how long a request may take to arrive, and one line for each error.

Waitress waits for a slow sender for ever, as long as a byte comes now and then, and cuts off one
that sends too much before it has read why. Here both are told.
"""

import json
import socket
import threading
import time
from typing import Any, cast

import flask
import waitress.server
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask
from waitress.utilities import Error, RequestEntityTooLarge

from ..errors import UserError, one_line
from .app import HEADERS
from .comparison import WAITING

ARRIVAL = 10.0  # seconds for a request to arrive as a whole


class _TooSlowError(Error):
    code, reason = 408, "Request Timeout"


class _OneLine(ErrorTask):
    request: HTTPRequestParser
    response_headers: list[tuple[str, str]]

    def execute(self) -> None:
        error = cast(Error, self.request.error)  # what brought it here
        text = one_line(f"{error.reason}: {error.body}")
        body = json.dumps({"error": text}).encode() + b"\n"
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", "application/json"), *HEADERS.items()]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Nowhere:
    """A buffer that keeps nothing."""

    def append(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


class _Parser(HTTPRequestParser):
    """Reads a body that is too large to its end, keeping nothing: its sender then reads why."""

    body_rcv: Any

    def received(self, data: bytes) -> int:
        used = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge):
            if self.expect_continue:
                self.expect_continue = False  # the sender of no body yet reads why at once
            else:
                self.body_rcv.buf = _Nowhere()
                self.completed = self.body_rcv.completed or self.body_rcv.error is not None
        return used


class _Channel(HTTPChannel):
    parser_class, error_task_class = _Parser, _OneLine
    requests_lock: threading.Lock
    requests: list[HTTPRequestParser]
    began = 0.0

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self.began = time.monotonic()
        return super().received(data)

    def readable(self) -> bool:  # asked at least once a second
        if self.request is not None and time.monotonic() - self.began > ARRIVAL:
            self._stop_waiting(self.request)
        return super().readable()

    def _stop_waiting(self, late: HTTPRequestParser) -> None:
        with self.requests_lock:
            self.request = None
            late.error = late.error or _TooSlowError(f"not all of it came within {ARRIVAL:.0f} s")
            late.completed = True
            self.requests.append(late)
            if len(self.requests) == 1:
                self.server.add_task(self)  # pyright: ignore[reportArgumentType]


def create_server(app: flask.Flask, host: str, port: int):
    """A server of the app; `run` serves until it is stopped. UserError for a port in use."""
    if not 0 <= port < 2**16:
        raise UserError(f"port {port}: give one from 0 (any free one) to 65535")
    try:
        # For a name with two addresses waitress makes a server that passes our channel on to none.
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
        server = waitress.server.create_server(
            app,
            host=address,
            port=port,
            threads=WAITING + 8,  # all that may wait, and some to refuse the others at once
            max_request_body_size=app.config["MAX_CONTENT_LENGTH"],
            # Who sends no request is cut off, and keeps nobody out until then.
            channel_timeout=2 * ARRIVAL,
            cleanup_interval=1,
            connection_limit=200,
            clear_untrusted_proxy_headers=True,
            ident=None,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port}: {reason}; choose another --host or --port") from None
    server.channel_class = _Channel  # pyright: ignore[reportAttributeAccessIssue]
    return server
