"""What every request passes: names, tokens, sizes and time first, then the figures on its way out."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .metrics import Metrics
from .problem import Problem, problem_of

LOG = logging.getLogger("clipfake.service")
WRITES = {"POST /v1/bank", "DELETE /v1/bank"}
OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}  # tell nothing of what is stored
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def allow(method: str, path: str, headers: Mapping[str, str], token: str, *, public: bool) -> None:
    """Raise Problem unless this request may pass.

    A service on this machine alone is read without a token, but under its own name only: a web page must not reach it
    by a name it has pointed here. Writing always takes the token.
    """
    if not public and host_of(headers.get("host", "")) not in LOOPBACK:
        raise Problem("wrong-host", f"this service answers to {', '.join(LOOPBACK)} only; use one of these")
    writes = f"{method} {'/'.join(path.split('/')[:3])}" in WRITES
    if writes and not token:
        raise Problem("writes-off", "start the service with CLIPFAKE_TOKEN set to allow writing, and send that token")
    if writes or (public and path not in OPEN):
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            said = "send `Authorization: Bearer TOKEN` with the service's CLIPFAKE_TOKEN"
            raise Problem("token-required", said, headers={"WWW-Authenticate": "Bearer"})


def host_of(header: str) -> str:
    """The name in a Host header, without its port.

    >>> host_of("localhost:8000"), host_of("[::1]:8000"), host_of("")
    ('localhost', '::1', '')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] or header if header.count(":") == 1 else header


@dataclass
class Body:
    """What has come of a request's body so far."""

    most: int
    read: int = 0
    done: bool = False
    too_large: bool = False


class Gate:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, token: str, public: bool) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token, self.public = token, public
        self._now = 0  # requests being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, body = time.perf_counter(), Body(self.limits.request_bytes)
        status, started = 0, False

        async def taking() -> Message:
            if body.too_large:
                return {"type": "http.disconnect"}
            message = await receive()
            body.read += len(message.get("body", b""))
            body.done = body.done or not message.get("more_body", False)
            if body.read > body.most:
                body.too_large = True
                return {"type": "http.disconnect"}  # the app gives up; `telling` says why
            return message

        async def telling(message: Message) -> None:
            nonlocal status, started
            if body.too_large and not started:
                raise too_large(body.most)
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                told = {name.decode().lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k not in told]
                if "cache-control" not in told:
                    extra.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        self._now += 1
        try:
            self._check(scope, body.most)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, taking, telling)
        except Exception as e:  # noqa: BLE001  the last word: whatever happens is answered, and the service stays up
            problem = self._problem(e, body)
            self.metrics.problems.labels(problem.kind).inc()
            if not started:
                body.too_large = False
                await problem.response()(scope, receive, telling)
        finally:
            self._now -= 1
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(scope["method"], route, status or 499).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)

    def _check(self, scope: Scope, most: int) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        allow(scope["method"], scope["path"], headers, self.token, public=self.public)
        if self._now > self.limits.requests and scope["path"] not in OPEN:
            said = f"{self.limits.requests} requests are being answered; try again in a second"
            raise Problem("busy", said, headers={"Retry-After": "1"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise too_large(most)

    def _problem(self, error: Exception, body: Body) -> Problem:
        if body.too_large:
            return too_large(body.most)
        if isinstance(error, TimeoutError):
            said = f"not done after {self.limits.seconds:g} s; send fewer images at once, or try again"
            return Problem("too-slow" if body.done else "slow-upload", said)
        problem = problem_of(error)
        if problem.status == 500:
            LOG.error("a request failed", exc_info=error)
        return problem


def too_large(most: int) -> Problem:
    said = f"the request is larger than the {most:,} bytes allowed; send fewer or smaller images"
    return Problem("too-large", said, headers={"Connection": "close"})
