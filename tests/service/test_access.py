"""Requests that a web page of another origin makes a browser send: refused before their body is read."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from clipfake.errors import ClipfakeError
from clipfake.service.problems import KINDS
from clipfake.service.server import serve
from starlette.testclient import TestClient

LOCAL = "127.0.0.1:8000"
TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def local(toy: Any) -> Iterator[TestClient]:
    with TestClient(toy.app(token="secret"), base_url=f"http://{LOCAL}") as client:
        yield client


@pytest.fixture(scope="module")
def public(toy: Any) -> Iterator[TestClient]:
    with TestClient(toy.app(token="secret", public=True), base_url="http://fakes.example") as client:
        yield client


def kind(response: Any) -> str:
    """The kind of a problem response, empty for any other response."""
    if not response.headers["content-type"].startswith("application/problem+json"):
        return ""
    answer = response.json()
    name: str = answer["type"].removeprefix("urn:clipfake:problem:")
    assert KINDS[name] == (response.status_code, answer["title"])
    return name


# headers, and whether a request to http://127.0.0.1:8000 with them passes
LOCAL_HEADERS: list[tuple[dict[str, str], bool]] = [
    ({}, True),  # curl and clients in Python
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": f"http://{LOCAL}"}, True),
    ({"Origin": f"http://{LOCAL}"}, True),
    ({"Origin": f"HTTP://{LOCAL}"}, True),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-User": "?1"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": f"http://{LOCAL}"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),  # another port of this machine
    ({"Sec-Fetch-Site": ""}, False),
    ({"Sec-Fetch-Site": "Same-Origin, cross-site"}, False),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, False),
    ({"Sec-Fetch-Site": "none", "Origin": "null"}, False),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Origin": "http://127.0.0.1"}, False),
    ({"Origin": "http://127.0.0.1:8001"}, False),
    ({"Origin": "http://127.0.0.1:80000"}, False),
    ({"Origin": "https://127.0.0.1:8000"}, False),
    ({"Origin": "http://localhost:8000"}, False),
    ({"Origin": "http://127.0.0.1:8000.evil.example"}, False),
    ({"Origin": "http://127.0.0.1:8000@evil.example"}, False),
    ({"Origin": "http://evil@127.0.0.1:8000"}, False),
    ({"Origin": "http://127.0.0.1:8000/"}, False),
    ({"Origin": "http://127.0.0.1:8000, https://evil.example"}, False),
    ({"Origin": "http://127.0.0.1:8000 https://evil.example"}, False),
    ({"Origin": "//127.0.0.1:8000"}, False),
    ({"Origin": "127.0.0.1:8000"}, False),
    ({"Origin": "file://"}, False),
    ({"Origin": "chrome-extension://127.0.0.1:8000"}, False),
    ({"Origin": "http://127.1:8000"}, False),
    ({"Origin": "https://evil.example", "Host": "evil.example"}, False),
    ({"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}, False),
    ({"Origin": "https://127.0.0.1:8000", "X-Forwarded-Proto": "https"}, False),
    ({"Origin": "http://[::1]:8000", "Host": "[::1]:8000"}, True),
    ({"Origin": "http://localhost", "Host": "LOCALHOST."}, True),
    ({"Origin": "http://localhost", "Host": "localhost:80"}, True),
]


@pytest.mark.parametrize(("headers", "passes"), LOCAL_HEADERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_local_service_answers_its_own_page_alone(
    local: TestClient, method: str, headers: dict[str, str], passes: bool
) -> None:
    path = "/v1/store" if method == "GET" else "/v1/query"
    refused = kind(local.request(method, path, headers=headers))
    assert refused in (("", "no-image") if passes else ("wrong-origin", "wrong-host"))


FOREIGN = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/query"),
        ("POST", "/v1/embed"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/search"),
        ("POST", "/knn-service"),
        ("POST", "/v1/bank"),
        ("DELETE", "/v1/bank/gan_a"),
        ("GET", "/v1/store"),
        ("HEAD", "/v1/store"),
        ("GET", "/v1/map"),
        ("GET", "/v1/thumbnails/gan_a/img 7.png"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("POST", "/healthz"),
        ("POST", "/"),
    ],
)
@pytest.mark.parametrize("media", ["text/plain", "multipart/form-data; boundary=x", "application/json"])
def test_foreign_page_gets_nothing_computed(local: TestClient, method: str, path: str, media: str) -> None:
    headers = {**FOREIGN, **TOKEN, "Content-Type": media}
    response = local.request(method, path, headers=headers)
    assert response.status_code == 403
    assert method == "HEAD" or kind(response) == "wrong-origin"
    assert "access-control-allow-origin" not in response.headers


def test_body_of_a_foreign_page_is_not_read(toy: Any) -> None:
    """The refusal comes before a byte of the body."""
    head = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n"
    with toy.served() as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as connection:
        connection.sendall(head + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 403"


def test_page_and_health_may_be_opened_from_elsewhere(local: TestClient) -> None:
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        response = local.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
        assert response.status_code == 200


# headers, and whether a request with the token to a service behind a proxy passes
PUBLIC_HEADERS: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Origin": "http://fakes.example"}, True),
    ({"Origin": "https://fakes.example"}, True),  # TLS ends at the proxy
    ({"Origin": "https://fakes.example", "Sec-Fetch-Site": "same-origin"}, True),
    ({"Origin": "https://fakes.example:8443", "Host": "fakes.example:8443"}, True),
    # a proxy that passes its own name on: the browser compared the addresses that it sees
    ({"Origin": "https://fakes.example", "Sec-Fetch-Site": "same-origin", "Host": "127.0.0.1:8000"}, True),
    ({"Origin": "https://fakes.example", "Host": "127.0.0.1:8000"}, False),
    ({"Origin": "https://fakes.example", "Sec-Fetch-Site": "none", "Host": "127.0.0.1:8000"}, False),
    ({"Origin": "https://evil.example", "Host": "127.0.0.1", "X-Forwarded-Host": "evil.example"}, False),
    ({"Origin": "https://evil.example", "Host": "127.0.0.1", "Forwarded": "host=evil.example"}, False),
    ({"Origin": "https://fakes.example:8443"}, False),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": "null"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),
]


@pytest.mark.parametrize(("headers", "passes"), PUBLIC_HEADERS)
def test_public_service_answers_its_own_page_alone(public: TestClient, headers: dict[str, str], passes: bool) -> None:
    """Also with the token, which a proxy may add to what any page sends."""
    refused = kind(public.post("/v1/query", headers={**TOKEN, **headers}))
    assert refused == ("no-image" if passes else "wrong-origin")


def test_origin_of_the_page_can_be_given(toy: Any) -> None:
    app = toy.app(token="secret", public=True, origin="https://fakes.example")
    with TestClient(app, base_url="http://10.0.0.2:8000") as client:
        for page, passes in (
            ("https://fakes.example", True),
            ("https://fakes.example:443", True),
            ("http://fakes.example", False),
            ("https://fakes.example:8443", False),
            ("http://10.0.0.2:8000", False),
            ("null", False),
        ):
            refused = kind(client.post("/v1/query", headers={**TOKEN, "Origin": page}))
            assert refused == ("no-image" if passes else "wrong-origin"), page
    for wrong in ("fakes.example", "https://fakes.example/page", "null"):
        with pytest.raises(ValueError, match="origin"):
            toy.app(token="secret", public=True, origin=wrong)
        with pytest.raises(ClipfakeError, match="not the origin of a page"):
            serve(toy.store, toy.encoder, toy.decode, toy.thumbnail, proxy=True, token="secret", origin=wrong)
    with pytest.raises(ClipfakeError, match="add --proxy"):
        serve(toy.store, toy.encoder, toy.decode, toy.thumbnail, token="secret", origin="https://fakes.example")


# --- the Host header, as it is sent

PASSES = ("127.0.0.1", "127.0.0.1:8123", "127.0.0.1:", "localhost", "LocalHost:1", "localhost.", "[::1]", "[::1]:8000")
REFUSED_HOSTS = (
    *("", " ", ":8000", ".", "localhost..", ".localhost", "evil.example", "localhost.evil.example", "*"),
    *("127.0.0.1:8123, evil.com", "127.0.0.1, evil.com", "127.0.0.1 evil.com", "127.0.0.1:8123 evil.com"),
    *("127.0.0.1:8123,127.0.0.1:8123", "127.0.0.1;evil.com", "127.0.0.1/evil.com", "127.0.0.1#evil.com"),
    *("[::1]evil", "[::1]evil:80", "[::1].evil", "[::1", "::1", "::1]", "[[::1]]", "[::1]:x", "[::1%25lo]", "[::1%lo]"),
    *("me@127.0.0.1", "127.0.0.1@evil.com", "127.0.0.1:80@evil.com", "me:secret@localhost", "http://localhost"),
    *("127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.000.000.001", "127.0.0.1.5", "0.0.0.0", "0"),
    *("127.0.0.2", "127.255.255.254", "[::ffff:127.0.0.1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::0001]", "[127.0.0.1]"),
    *("%6cocalhost", "localhost%00", "127%2e0%2e0%2e1", "localhost%", "ip6-localhost", "localhost.localdomain"),
    *("localhost:80:80", "localhost:-1", "localhost:+80", "localhost:8 0", "localhost:\xb2"),
    *("localhost\xa0", "\xa0localhost", "\x85localhost", "loc\xe4lhost", "\xadlocalhost"),
)


@pytest.fixture(scope="module")
def address(toy: Any) -> Iterator[tuple[str, int]]:
    with toy.served(token="secret") as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def status(address: tuple[str, int], head: bytes) -> int:
    """Status of the response to these bytes."""
    with socket.create_connection(address, 30) as connection:
        connection.sendall(head)
        return int(connection.recv(12)[9:])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_host_is_one_spelling_of_this_machine(address: tuple[str, int], version: str) -> None:
    head = "GET /v1/store HTTP/{}\r\nHost: {}\r\n\r\n"
    for host in PASSES:
        assert status(address, head.format(version, host).encode("latin-1")) == 200, host
    for host in REFUSED_HOSTS:
        assert status(address, head.format(version, host).encode("latin-1")) == 421, host
    assert status(address, b"GET /v1/store HTTP/1.0\r\n\r\n") == 421
    for second in ("localhost", "evil.example"):
        twice = f"GET /v1/store HTTP/{version}\r\nHost: localhost\r\nHost: {second}\r\n\r\n"
        assert status(address, twice.encode()) in (400, 421)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://localhost/v1/store", 200),
        ("HTTP://LOCALHOST/v1/store?a=1", 200),
        ("http://localhost", 200),
        ("http://localhost:81/v1/store", 421),
        ("http://evil.example/v1/store", 421),
        ("http://127.0.0.1/v1/store", 421),
        ("http://localhost@evil.example/v1/store", 421),
        ("http://me@localhost/v1/store", 421),
        ("http:///v1/store", 421),
        ("http://localhost\\@evil.example/v1/store", 421),
        ("http://localhost%2f@evil.example/v1/store", 421),
        ("//evil.example/v1/store", 404),  # a path
        ("ftp://localhost/v1/store", 404),
        ("evil.example:80", 404),
        ("*", 404),
    ],
)
def test_whole_url_must_name_the_host(address: tuple[str, int], target: str, expected: int) -> None:
    assert status(address, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) == expected


def test_whole_url_does_not_change_who_may_ask(toy: Any, public: TestClient) -> None:
    """The path within the URL decides, not the URL."""
    with toy.served(token="secret", public=True) as url:
        at = "127.0.0.1", int(url.rpartition(":")[2])
        for host in ("fakes.example", "localhost"):
            head = f"GET http://{host}%s HTTP/1.1\r\nHost: {host}\r\n\r\n"
            assert status(at, (head % "/v1/store").encode()) == 401
            assert status(at, (head % "/healthz").encode()) == 200
            assert status(at, (head % "/healthz/../v1/store").encode()) == 401
        assert status(at, b"GET http://a.example/healthz HTTP/1.1\r\nHost: b.example\r\n\r\n") == 421
