"""Connections of clients that are silent, slow or many: each is closed in time, and the others are served."""

import json
import logging
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from clipfake.service.http.descriptors import fitted
from clipfake.service.http.registry import REFUSED, ConnectionRegistry, client_name
from clipfake.service.http.repeated_log import RepeatedLogFilter
from clipfake.service.limits import Limits
from clipfake.service.metrics import ServiceMetrics

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PAGE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-a: "
PATIENCE = 30.0  # seconds until a test fails; the deadlines that are tested are far shorter


def connect(url: str, send: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE)
    connection.sendall(send)
    return connection


def connect_narrow(url: str, send: bytes) -> socket.socket:
    """A connection of a client that takes little before it reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    connection.sendall(send)
    return connection


def read_to_end(connection: socket.socket, *, trickle: bytes = b"", every: float = 0.1) -> bytes:
    """Everything that the service sends until it closes the connection, while more bytes are sent now and then."""
    received, end = b"", time.monotonic() + PATIENCE
    connection.settimeout(every)
    while time.monotonic() < end:
        try:
            if trickle:
                connection.send(trickle)
            if not (chunk := connection.recv(65536)):
                return received
            received += chunk
        except TimeoutError:
            continue
        except OSError:  # reset
            return received
    raise AssertionError("the connection is still open")


def read_one(connection: socket.socket) -> bytes:
    """One response, of a length that its head gives."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += (chunk := connection.recv(1))
        assert chunk, received
    length = re.search(rb"content-length: (\d+)", received)
    assert length
    body = b""
    while len(body) < int(length[1]):
        body += (chunk := connection.recv(int(length[1]) - len(body)))
        assert chunk, received
    return received + body


def answer(url: str, request: bytes = HEALTH) -> int:
    """Status of the response to a request on a connection of its own."""
    with connect(url, request) as connection:
        return status(read_one(connection))


def status(response: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", response)
    assert match, response
    return int(match[1])


def problem(response: bytes) -> tuple[int, str]:
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close\r\n" in head.lower() + b"\r\n"
    assert b"application/problem+json" in head
    return status(head), json.loads(body)["type"].removeprefix("urn:clipfake:problem:")


@pytest.fixture(scope="module")
def hasty(toy: Any) -> Iterator[str]:
    """A service with short deadlines."""
    with toy.served(limits=Limits(head_seconds=0.5, seconds=2.0)) as url:
        yield url


@pytest.fixture(scope="module")
def patient(toy: Any) -> Iterator[str]:
    """A service with the usual deadlines."""
    with toy.served() as url:
        yield url


# --- deadlines


def test_silent_connection_is_closed_without_a_word(hasty: str) -> None:
    with connect(hasty) as connection:
        assert read_to_end(connection) == b""


@pytest.mark.parametrize("head", [b"G", HALF, b"POST /v1/query HTTP/1.1\r\n", HEALTH[:-2]])
def test_half_a_head_is_refused(hasty: str, head: bytes) -> None:
    with connect(hasty, head) as connection:
        assert problem(read_to_end(connection)) == (408, "slow-upload")


@pytest.mark.parametrize("start", [b"", HALF], ids=["before the head", "within the head"])
def test_trickled_bytes_do_not_extend_the_deadline(hasty: str, start: bytes) -> None:
    with connect(hasty, start) as connection:
        read_to_end(connection, trickle=b"a" if start else b"\r\n")


@pytest.mark.parametrize("start", [b"", b"\r\n", HALF], ids=["silent", "empty line", "half a head"])
def test_deadline_holds_between_requests_too(hasty: str, start: bytes) -> None:
    with connect(hasty, HEALTH) as connection:
        assert status(read_one(connection)) == 200
        connection.sendall(HEALTH)
        assert status(read_one(connection)) == 200
        read_to_end(connection, trickle=start[:1] if start == b"\r\n" else start[-1:])


BODIES = {
    "length": (b"Content-Length: 100000", b"", b"a"),
    "chunks": (b"Transfer-Encoding: chunked", b"", b"1\r\na\r\n"),
    "extensions": (b"Transfer-Encoding: chunked", b"1;", b"a=b;"),
    "trailers": (b"Transfer-Encoding: chunked", b"1\r\na\r\n0\r\n", b"X-a: b\r\n"),
    "continue": (b"Expect: 100-continue\r\nContent-Length: 10", b"", b""),
}


@pytest.mark.parametrize(("header", "begin", "trickle"), BODIES.values(), ids=BODIES)
def test_trickled_body_is_refused_and_its_connection_closed(
    hasty: str, header: bytes, begin: bytes, trickle: bytes
) -> None:
    head = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n%b\r\n\r\n"
    with connect(hasty, head % header + begin) as connection:
        received = read_to_end(connection, trickle=trickle)
    assert problem(received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")) == (408, "slow-upload")


def test_body_of_a_refused_request_does_not_hold_its_connection(hasty: str) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with connect(hasty, head) as connection:
        assert status(read_one(connection)) == 404
        read_to_end(connection, trickle=b"a")


@pytest.mark.parametrize("requests", [1, 5])
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
def test_connection_with_unread_responses_is_closed(
    toy: Any, requests: int, close: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    pages = PAGE * (requests - 1) + PAGE[:-2] + close + b"\r\n"
    with (
        toy.served(limits=Limits(head_seconds=0.5, seconds=2.0), send_buffer=4096) as url,
        connect_narrow(url, pages),
    ):
        wait_until(lambda: gauge(url) == 2)
        wait_until(lambda: gauge(url) == 1)  # the one that asks
    assert "ERROR" not in capfd.readouterr().err


def test_slow_reader_has_the_time_of_a_request(toy: Any) -> None:
    """A response that is taken in time is whole, though the deadline for the next head has passed."""
    with (
        toy.served(limits=Limits(head_seconds=0.2, seconds=PATIENCE), send_buffer=4096) as url,
        connect_narrow(url, PAGE) as connection,
    ):
        time.sleep(0.6)
        received = read_to_end(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert len(body) > 50_000


def test_pipelined_requests_and_http_1_0_are_answered(patient: str) -> None:
    with connect(patient, HEALTH * 19 + HEALTH[:-2] + b"Connection: close\r\n\r\n") as connection:
        assert read_to_end(connection).count(b"HTTP/1.1 200 OK") == 20
    with connect(patient, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n") as connection:
        assert status(read_to_end(connection)) == 200


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ],
    ids=["websocket", "h2c"],
)
def test_upgrade_is_answered_as_http_without_a_log(
    patient: str, upgrade: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(patient, HEALTH[:-2] + upgrade + b"\r\n") as connection:
        assert status(read_one(connection)) == 200
    assert caplog.text == ""


# --- requests that are no HTTP


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400, "bad-request")),
        (b"GET /healthz HTTP/1.1\r\n\r\n", (400, "bad-request")),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", (400, "bad-request")),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-a: " + b"a" * 100_000, (431, "head-too-large")),
        (b"GET /" + b"a" * 100_000, (431, "head-too-large")),
    ],
    ids=["tls", "no host", "two hosts", "long header", "long path"],
)
def test_what_is_no_http_is_a_problem(patient: str, request_bytes: bytes, expected: tuple[int, str]) -> None:
    with connect(patient, request_bytes) as connection:
        assert problem(read_to_end(connection)) == expected


def test_malformed_body_is_answered_once(patient: str, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(patient, head + b"no size\r\n") as connection:
        received = read_to_end(connection)
    assert (problem(received), received.count(b"HTTP/1.1 ")) == ((400, "bad-request"), 1)
    refused = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(patient, refused) as connection:
        assert status(read_one(connection)) == 404
        connection.sendall(b"no size\r\n")
        assert b"HTTP/1.1 " not in read_to_end(connection)
    assert caplog.text == ""


# --- how many


def gauge(url: str) -> float:
    """Number of open connections, that of the question included; nan if the service was too slow for its own limits."""
    with connect(url, b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n") as connection:
        match = re.search(rb"^clipfake_connections (\S+)", read_to_end(connection), re.MULTILINE)
    return float(match[1]) if match else math.nan


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("start", [b"", HALF, HEALTH], ids=["silent", "half a head", "idle"])
def test_flood_replaces_its_own_connections(toy: Any, start: bytes) -> None:
    with toy.served(limits=Limits(connections=8, client_connections=8)) as url:
        flood = [connect(url, start) for _ in range(60)]
        for _ in range(5):
            assert answer(url) == 200
        assert gauge(url) <= 8
        for connection in flood:
            connection.close()
        wait_until(lambda: gauge(url) == 1)


def test_connection_beyond_all_requests_gets_503(toy: Any) -> None:
    upload = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    with toy.served(limits=Limits(connections=4, seconds=PATIENCE, requests=100)) as url:
        uploads = [connect(url, upload) for _ in range(4)]
        for connection in uploads:  # all are under way
            assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        many = [connect(url, HEALTH) for _ in range(REFUSED // 2)]
        for connection in many:
            with connection:
                received = read_to_end(connection)
            assert (problem(received), b"retry-after: 1" in received) == ((503, "busy"), True)
        uploads[0].close()
        wait_until(lambda: answer(url) == 200)
        for connection in uploads:
            connection.close()
        wait_until(lambda: gauge(url) == 1)


@pytest.mark.parametrize("requests", [1, 5])
def test_response_that_is_not_read_keeps_nobody_out(toy: Any, requests: int) -> None:
    limits = Limits(connections=4, head_seconds=PATIENCE, seconds=PATIENCE)
    with toy.served(limits=limits, send_buffer=4096) as url:
        held = [connect_narrow(url, PAGE * requests) for _ in range(4)]
        wait_until(lambda: answer(url) == 200)
        for connection in held:
            connection.close()


class Client:
    """A connection without a socket, of a client by name."""

    def __init__(self, name: str) -> None:
        self.client_name, self.dropped = name, False

    def drop(self) -> None:
        self.dropped = True


def test_client_with_the_most_connections_makes_room() -> None:
    registry = ConnectionRegistry(Limits(connections=6, client_connections=4), ServiceMetrics())
    one = [Client("a") for _ in range(6)]
    assert all(registry.admit(client) for client in one)
    assert [client.dropped for client in one] == [True, True, False, False, False, False]
    others = [Client("b"), Client("c")]
    assert all(registry.admit(client) for client in others)
    third = Client("d")
    assert registry.admit(third)
    assert [client.dropped for client in one[2:]] == [True, False, False, False]
    assert not any(client.dropped for client in (*others, third))


def test_busy_connection_is_never_replaced() -> None:
    registry = ConnectionRegistry(Limits(connections=3, client_connections=2), ServiceMetrics())
    busy = [Client("a"), Client("a")]
    for client in busy:
        assert registry.admit(client)
        registry.mark(client, busy=True)
    assert not registry.admit(Client("a"))
    other = Client("b")
    assert registry.admit(other)
    registry.mark(other, busy=True)
    assert not registry.admit(Client("c"))
    registry.mark(busy[1], busy=False)
    assert registry.admit(Client("c"))
    assert [client.dropped for client in (*busy, other)] == [False, True, False]


def test_refused_connections_are_bounded_and_forgotten() -> None:
    registry = ConnectionRegistry(Limits(connections=1, client_connections=1), ServiceMetrics())
    first = Client("")
    assert registry.admit(first)
    registry.mark(first, busy=True)
    refused = [Client("") for _ in range(REFUSED + 3)]
    assert not any(registry.admit(client) for client in refused)
    assert [client.dropped for client in refused] == [True] * 3 + [False] * REFUSED
    registry.remove(refused[-1])
    registry.remove(first)
    registry.remove(first)
    assert registry.admit(Client(""))


def test_local_clients_have_no_share() -> None:
    registry = ConnectionRegistry(Limits(connections=4, client_connections=1), ServiceMetrics())
    local = [Client(client_name(address)) for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "127.9.9.9")]
    assert all(registry.admit(client) for client in local)
    assert not any(client.dropped for client in local)


@pytest.mark.parametrize(
    ("descriptors", "connections", "requests"),
    [(None, 512, 256), (65_536, 512, 256), (1024, 512, 256), (256, 128, 96), (128, 64, 48), (6, 4, 3)],
)
def test_limits_fit_into_the_descriptors(descriptors: int | None, connections: int, requests: int) -> None:
    limits = fitted(Limits(), descriptors)
    assert (limits.connections, limits.requests) == (connections, requests)
    assert limits.client_connections <= limits.connections


# --- the whole service, with few descriptors

SERVER = """
import resource, sys
from pathlib import Path
import numpy as np
from clipfake.indexer.decoding.image import decode, thumbnail
from clipfake.indexer.encoders.base import Encoder
from clipfake.service.limits import Limits
from clipfake.service.server import serve
from clipfake.store.space import Space
from clipfake.store.store import Store

class Plain(Encoder):
    _space = Space("plain", "0" * 64, 2)

    def encode(self, images):
        return np.full((len(images), 2), 0.5 ** 0.5, np.float32)

store = Store.create(Path(sys.argv[1]), Plain._space)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
limits = Limits(seconds=float(sys.argv[4]))

def ready(url):
    for _ in range(int(sys.argv[5])):
        taken.append(open("/dev/null"))
    print(url, flush=True)

taken = []
serve(store, Plain(), decode, thumbnail, port=0, on_ready=ready, limits=limits)
"""


@contextmanager
def running(
    tmp_path: Path, descriptors: int, *, hard: int = 0, seconds: float = 60.0, taken: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A service in a process of its own with so many descriptors, some of them taken; yields its URL and its log."""
    log = tmp_path / "log"
    numbers = [str(number) for number in (descriptors, hard or descriptors, seconds, taken)]
    with log.open("w") as errors:
        program = [sys.executable, "-c", SERVER, str(tmp_path / "store"), *numbers]
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout
            yield process, process.stdout.readline().strip(), log
        finally:
            process.kill()
            process.communicate()


def test_flood_with_few_descriptors_is_survived_with_a_short_log(tmp_path: Path) -> None:
    with running(tmp_path, 128) as (_, url, log):
        flood = [connect(url, HALF if i % 2 else b"") for i in range(400)]
        assert answer(url) == 200
        for connection in flood:
            connection.close()
        for _ in range(100):
            assert answer(url, b"no HTTP\r\n\r\n") == 400
        assert answer(url) == 200
        text = log.read_text()
        assert "only 64 connections" in text
        assert "to make room" in text
        assert len(text) < 10_000


def test_service_recovers_when_descriptors_are_free_again(tmp_path: Path) -> None:
    """Descriptors that something else has taken leave fewer than the limit of connections expects."""
    with running(tmp_path, 128, taken=80) as (_, url, log):
        flood = [connect(url) for _ in range(100)]
        assert answer(url) == 200
        for connection in flood:
            connection.close()
        assert answer(url) == 200
        text = log.read_text()
        assert "no file descriptor is free" in text
        assert len(text) < 10_000


def test_descriptor_limit_is_raised_as_far_as_allowed(tmp_path: Path) -> None:
    with running(tmp_path, 64, hard=2048) as (_, url, log):
        flood = [connect(url, HEALTH) for _ in range(300)]
        assert all(status(read_one(connection)) == 200 for connection in flood)
        assert gauge(url) == 301
        assert log.read_text() == ""
        for connection in flood:
            connection.close()


def test_shutdown_does_not_wait_for_held_connections(tmp_path: Path) -> None:
    with running(tmp_path, 1024, seconds=1.0) as (process, url, _):
        idle = connect(url, HEALTH)
        assert status(read_one(idle)) == 200
        unread = connect_narrow(url, PAGE * 400)
        upload = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na"
        held = [idle, unread, connect(url), connect(url, HALF), connect(url, upload)]
        process.terminate()
        process.wait(PATIENCE)
        for connection in held:
            connection.close()


# --- the log


def test_repeated_messages_are_counted() -> None:
    now, lines = 0.0, []
    limited = RepeatedLogFilter(lines=2, seconds=10, clock=lambda: now)
    logger = logging.getLogger("test of repeated messages")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.addFilter(limited)
    logger.propagate = False
    for i in range(100):
        logger.warning("refused %d", i)
    logger.warning("another")
    limited.flush()
    assert lines == ["refused 0", "refused 1", "another"]
    now = 11.0
    limited.flush()
    assert lines[3:] == ["98 more times within 10 s: refused %d"]
    logger.warning("refused %d", 100)
    assert lines[4:] == ["refused 100"]
    limited.flush(final=True)
    assert len(lines) == 5


def test_different_messages_are_bounded_too() -> None:
    limited = RepeatedLogFilter()
    kept = sum(limited.filter(logging.LogRecord("a", 30, "", 0, f"message {i}", (), None)) for i in range(5000))
    assert kept <= 1000
