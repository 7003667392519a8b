"""A web server that answers with whatever bytes a test gives it, for as long as they come."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

RESET = None  # in place of bytes: the connection is reset


class Request(NamedTuple):
    target: str
    headers: dict[str, str]  # names in lower case
    number: int  # of earlier requests for the same target
    stopped: threading.Event

    def range_of(self, content: bytes) -> tuple[int, int]:
        """First requested byte, and the one after the last."""
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else len(content), len(content))

    def slowly(self, pieces: Iterable[bytes], seconds: float = 0.05) -> Iterator[bytes]:
        """The pieces, one after each pause."""
        for piece in pieces:
            if self.stopped.wait(seconds):
                return
            yield piece

    def silence(self) -> Iterator[bytes]:
        self.stopped.wait()
        yield b""


Answer = Callable[[Request], Iterable[bytes | None]]


class WebServer:
    """Answers requests by their target until the block ends; a target that is not known is a 404."""

    def __init__(self, answers: dict[str, Answer] | None = None, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=100)
        port = self._listener.getsockname()[1]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.answers, self.requests = dict(answers or {}), Counter[str]()
        self.heads: list[bytes] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> WebServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[connection], daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection, suppress(OSError):
            request = self._request(connection)
            for piece in self.answers.get(request.target, status(404))(request):
                if self._stopped.is_set():
                    return
                if piece is RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                connection.sendall(piece)

    def _request(self, connection: socket.socket) -> Request:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                raise OSError("no request")
            head += piece
        self.heads.append(head)
        first, *lines = head.decode("latin-1").split("\r\n")
        target = first.split(" ")[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        number = self.requests[target]
        self.requests[target] += 1
        return Request(target, headers, number, self._stopped)


def head(code: int = 200, *lines: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {code} Whatever", *lines, "Connection: close", "", "")).encode("latin-1")


def status(code: int, *lines: str, body: bytes = b"") -> Answer:
    return lambda request: [head(code, *lines), body]


def content(body: bytes, kind: str = "application/octet-stream", *lines: str) -> Answer:
    """A file, of which a range can be requested."""

    def answer(request: Request) -> Iterable[bytes]:
        if "range" not in request.headers:
            return [head(200, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines), body]
        start, end = request.range_of(body)
        if start >= len(body):
            return [head(416, f"Content-Range: bytes */{len(body)}", "Content-Length: 0")]
        stated = f"Content-Range: bytes {start}-{end - 1}/{len(body)}"
        return [head(206, f"Content-Type: {kind}", stated, f"Content-Length: {end - start}", *lines), body[start:end]]

    return answer
