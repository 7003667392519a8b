"""Who may send requests: checks of Host, Origin, Sec-Fetch-Site and Authorization, before a body is read."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import Scope

from ..problems import HttpProblem

OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}  # paths that reveal nothing of the store
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OWN_SITE = {"same-origin", "none"}  # values of Sec-Fetch-Site: the service's own page; an address that a user typed
PORTS = {"http": "80", "https": "443"}
AUTHORITY = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^:\[\]]+?)\.?)(?::([0-9]*))?")
ORIGIN = re.compile(r"(https?)://([^/?#\s]+)", re.IGNORECASE)
ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class Origin(NamedTuple):
    """Scheme, host name in lower case without a final dot, and port of a web page."""

    scheme: str
    name: str
    port: str

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Parse an Origin header; None if it names no page of the web, as `null`.

        >>> Origin.parse("https://Fakes.example"), Origin.parse("null"), Origin.parse("http://a/path")
        (Origin(scheme='https', name='fakes.example', port='443'), None, None)
        """
        match = ORIGIN.fullmatch(text)
        name, port = authority(match[2]) if match else ("", "")
        if not match or not name:
            return None
        scheme = match[1].lower()
        return cls(scheme, name, port or PORTS[scheme])


def authority(text: str) -> tuple[str, str]:
    """Split a Host header into its name, in lower case without a final dot, and its port; two empty texts if invalid.

    >>> authority("LocalHost.:8000"), authority("[::1]"), authority("localhost:evil"), authority("me@localhost")
    (('localhost', '8000'), ('::1', ''), ('', ''), ('me@localhost', ''))
    """
    match = AUTHORITY.fullmatch(text.strip(" \t"))
    return ((match[1] or match[2]).lower(), match[3] or "") if match else ("", "")


def with_path_alone(scope: Scope) -> Scope:
    """Return a scope whose path has no scheme and host: clients of proxies send whole URLs (RFC 9112, 3.2.2).

    Raises HttpProblem (wrong-host) if the URL names another host than the Host header.
    """
    if scope["path"].startswith("/") or not (whole := ABSOLUTE.fullmatch(scope["path"])):
        return scope
    raw = scope.get("raw_path", b"").decode("latin-1")
    match = ABSOLUTE.fullmatch(raw) or whole
    if authority(match[1]) != authority(Headers(scope=scope).get("host", "")):
        message = "the request target names another host than the Host header; send the path alone"
        raise HttpProblem("wrong-host", message)
    path = match[2] or "/"
    return {**scope, "path": unquote(path), "raw_path": path.encode("latin-1")}


def allow(scope: Scope, token: str, *, public: bool, origin: Origin | None = None) -> None:
    """Raise HttpProblem unless this request may read.

    A service that only this machine reaches needs no token to read, but checks that no web page reads or computes
    through a browser on this machine: neither through a domain that resolves to it (DNS rebinding; the Host header)
    nor from another origin (cross-site requests; the headers Origin and Sec-Fetch-Site).

    Parameters
    ----------
    public : whether other machines reach the service, under any host name
    origin : origin of the service's page, if a proxy changes the Host header (default: that of the Host header)
    """
    headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
    hosts = headers.getlist("host")
    if len(hosts) > 1:
        raise HttpProblem("wrong-host", "the request has more than one Host header; send one")
    host = hosts[0] if hosts else ""
    if not public and authority(host)[0] not in LOOPBACK:
        message = f"the Host header must be one of {', '.join(LOOPBACK)}; open the service under one of these names"
        raise HttpProblem("wrong-host", message)
    # nothing is computed for a request that asks for permission, nor for those that open the page
    harmless = method == "OPTIONS" or (path in OPEN and method in ("GET", "HEAD"))
    if not harmless and not from_own_page(headers, host, public=public, origin=origin):
        message = "a web page of another origin sent this request; use the service's own page, or a client without one"
        raise HttpProblem("wrong-origin", message)
    if public and path not in OPEN:
        require_token(headers, token)


def from_own_page(headers: Headers, host: str, *, public: bool, origin: Origin | None = None) -> bool:
    """Whether a request comes from the service's own page or from a client that is no browser.

    Browsers add Sec-Fetch-Site (to services on this machine or with TLS) and Origin (except for images, scripts and
    links), and no page can change them; other clients send neither.
    """
    sites = headers.getlist("sec-fetch-site")
    if not set(sites) <= OWN_SITE:
        return False
    origins = [Origin.parse(text) for text in headers.getlist("origin")]
    if not origins or (public and origin is None and "same-origin" in sites):
        return True  # the browser compared the addresses that it sees, which a proxy may change
    page = origins[0]
    if len(origins) > 1 or page is None:
        return False
    if public and origin is not None:
        return page == origin
    name, port = authority(host)
    # a service that other machines reach may be behind a proxy with TLS; it does not know its own scheme
    return (page.name, page.port) == (name, port or PORTS[page.scheme]) and (public or page.scheme == "http")


def allow_writing(headers: Mapping[str, str], token: str) -> None:
    """Raise HttpProblem unless this request may change the store, which always requires the token."""
    if not token:
        message = "the service was started without a token; start it with CLIPFAKE_TOKEN set, and send that token"
        raise HttpProblem("writes-off", message)
    require_token(headers, token)


def require_token(headers: Mapping[str, str], token: str) -> None:
    """Raise HttpProblem unless the Authorization header has the token."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(credentials.strip().encode("latin-1"), token.encode()):
        message = "the token is missing or wrong; send `Authorization: Bearer TOKEN` with the service's CLIPFAKE_TOKEN"
        raise HttpProblem("token-required", message, headers={"WWW-Authenticate": "Bearer"})
