"""One connection: uvicorn's HTTP protocol with a deadline for everything that a client can leave undone."""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..limits import Limits
from ..problems import HttpProblem
from .registry import ConnectionRegistry, client_name

GRACE = 2.0  # seconds beyond `Limits.seconds` for the problem response that then is sent
LINGER = 1.0  # seconds for a client to read the last response before its connection is reset


class HttpConnection(H11Protocol):  # type: ignore[misc]
    """A connection that is closed if its client is late.

    It has `Limits.head_seconds` for the whole head of a request, from the first moment and after each response, and
    `Limits.seconds` (with a grace) from the head to the moment when the client has taken the response. uvicorn has a
    timer only between requests, which the first byte ends.
    """

    def __init__(self, *arguments: Any, limits: Limits, registry: ConnectionRegistry, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits, self._registry = limits, registry
        self.client_name = ""
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._answer_by = 0.0  # loop time at which the client must have taken the response

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.client_name = client_name(self.client[0] if self.client else "")
        if self._registry.admit(self):
            self._close_after(self._limits.head_seconds)
        else:
            self._refused = True
            message = "all connections of the service are in use; try again in a second"
            self._send_last(HttpProblem("busy", message, headers={"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._registry.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # the head of a request is complete
            self._answer_by = self.loop.time() + self._limits.seconds + GRACE
            self._close_after(self._limits.seconds + GRACE)
            self._mark()

    def on_response_complete(self) -> None:
        self._close_after(self._limits.head_seconds)  # first, because the next request may have arrived already
        self._mark()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._mark()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._mark()

    def timeout_keep_alive_handler(self) -> None:
        """Leave the end of an idle connection to its deadline."""

    def drop(self) -> None:
        """Close the connection at once, with what was not sent yet."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP with a problem, and close the connection."""
        error = sys.exception()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer was begun or sent already
            self.drop()
            return
        if self._answering():  # the body is malformed; the application must not answer as well
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        kind, reason = ("head-too-large", "too long") if too_large else ("bad-request", str(error or msg)[:200])
        self._refused = True
        self._send_last(HttpProblem(kind, f"the request is not valid HTTP: {reason}"))

    def _should_upgrade(self) -> bool:
        return False  # requests to upgrade are answered as if they had not asked, which HTTP allows

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _mark(self) -> None:
        # a client that does not read its answer must not keep others out
        self._registry.mark(self, busy=self._answering() and not self.flow.write_paused)

    def _close_after(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Close the connection at its deadline, or wait for a client that still may read its response."""
        unread = self.transport.get_write_buffer_size() > 0
        if unread and not self._answering() and (left := self._answer_by - self.loop.time()) > 0:
            self._close_after(min(left, self._limits.head_seconds))
        elif self._refused:
            self.drop()
        elif unread or self._answering() or self.transport.is_closing():
            self._registry.count_closed("stalled")
            self.drop()
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._registry.count_closed("late")
            self._refused = True
            seconds = self._limits.head_seconds
            message = f"the head of the request did not arrive within {seconds:g} s; send the request at once"
            self._send_last(HttpProblem("slow-upload", message))
        else:
            self._registry.count_closed("late")
            self.transport.close()

    def _send_last(self, problem: HttpProblem) -> None:
        """Send a response past the application, and close the connection when the client has had time to read it."""
        response = problem.response()
        status = HTTPStatus(response.status_code)
        head = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), b"connection: close"]
        head += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()  # closing at once would reset the connection before the response is read
        self._close_after(LINGER)
