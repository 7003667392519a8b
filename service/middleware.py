"""Middleware of every request: checks host, token, size and time, and records metrics on the way out."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .metrics import ServiceMetrics
from .problems import HttpProblem, problem_of

LOG = logging.getLogger("clipfake.service")
OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}  # tell nothing of what is stored
LOOPBACK = ("127.0.0.1", "localhost", "::1")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
CLOSE = {"Connection": "close"}  # what is left of the body is not read
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def allow(path: str, headers: Mapping[str, str], token: str, *, public: bool) -> None:
    """Raise Problem unless this request may read.

    A service on this machine alone is read without a token, but under its own name only: a web page must not reach it
    by a name it has pointed here.
    """
    if public and path not in OPEN:
        require_token(headers, token)
    if not public and host_of(headers.get("host", "")) not in LOOPBACK:
        raise HttpProblem("wrong-host", f"this service answers to {', '.join(LOOPBACK)} only; use one of these")


def allow_writing(headers: Mapping[str, str], token: str) -> None:
    """Raise Problem unless this request may change the store, which always takes the token."""
    if not token:
        raise HttpProblem(
            "writes-off", "start the service with CLIPFAKE_TOKEN set to allow writing, and send that token"
        )
    require_token(headers, token)


def require_token(headers: Mapping[str, str], token: str) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), token.encode()):
        message = "send `Authorization: Bearer TOKEN` with the service's CLIPFAKE_TOKEN"
        raise HttpProblem("token-required", message, headers={"WWW-Authenticate": "Bearer"})


def host_of(header: str) -> str:
    """The name in a Host header, without its port.

    >>> host_of("localhost:8000"), host_of("[::1]:8000"), host_of("")
    ('localhost', '::1', '')
    """
    if header.startswith("["):
        name, bracket, _ = header[1:].partition("]")
        return name if bracket else ""
    return header.rpartition(":")[0] or header if header.count(":") == 1 else header


@dataclass
class Body:
    """Body of a request as received so far."""

    read: int = 0
    done: bool = False
    refused: HttpProblem | None = None


class Gate:
    """The outermost layer of the app."""

    def __init__(
        self, app: ASGIApp, *, limits: Limits, metrics: ServiceMetrics, token: str, public: bool, folder: Path
    ) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token, self.public, self.folder = token, public, folder
        self._now = 0  # requests being answered
        self._held = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, body = time.perf_counter(), Body()
        status = 0  # of the answer, once it has begun

        async def taking() -> Message:
            if body.refused is None:
                message = await receive()
                self._take(body, message)
            # to the app it looks as if the client had gone; `telling` says why
            return message if body.refused is None else {"type": "http.disconnect"}

        async def telling(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if body.refused is not None:
                    raise body.refused
                status = message["status"]
                headers = Headers(raw=message["headers"])
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k not in headers]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        self._now += 1
        try:
            self._check(scope)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, taking, telling)
        except Exception as e:  # noqa: BLE001  the last word: whatever happens is answered, and the service stays up
            problem, body.refused = body.refused or self._problem(e, body), None
            if problem:
                self.metrics.problems.labels(problem.kind).inc()
            if problem and not status:
                await problem.response()(scope, receive, telling)
        finally:
            self._now -= 1
            self._held -= body.read
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(method, route, status or 499).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)

    def _take(self, body: Body, message: Message) -> None:
        """Count what came; from then on the body is refused if it is too much."""
        come = len(message.get("body", b""))
        body.read += come
        self._held += come
        body.done = body.done or not message.get("more_body", False)
        if body.read > self.limits.request_bytes:
            body.refused = too_large(self.limits.request_bytes)
        elif self._held > self.limits.held_bytes:
            detail = f"requests of {self._held:,} bytes are being answered; try again in a second"
            body.refused = HttpProblem("busy", detail, headers={"Retry-After": "1", **CLOSE})

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        allow(scope["path"], headers, self.token, public=self.public)
        if self._now > self.limits.requests and scope["path"] not in OPEN:
            message = f"{self.limits.requests} requests are being answered; try again in a second"
            raise HttpProblem("busy", message, headers={"Retry-After": "1"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limits.request_bytes:
            raise too_large(self.limits.request_bytes)

    def _problem(self, error: Exception, body: Body) -> HttpProblem | None:
        if isinstance(error, ClientDisconnect):
            return None  # nobody is there to be told
        if isinstance(error, TimeoutError):
            message = f"not done after {self.limits.seconds:g} s; send fewer images at once, or try again"
            return HttpProblem("too-slow", message) if body.done else HttpProblem("slow-upload", message, headers=CLOSE)
        problem = problem_of(error, self.folder)
        if problem.status == 500 and problem is not error:  # else it was logged where it arose
            LOG.error("a request failed", exc_info=error)
        return problem


def too_large(most: int) -> HttpProblem:
    message = f"the request is larger than the {most:,} bytes allowed; send fewer or smaller images"
    return HttpProblem("too-large", message, headers=CLOSE)
