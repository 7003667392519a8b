"""Middleware of every request: checks access, size and time, and records metrics on the way out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Damaged, Unreadable
from .http.access import OPEN, Origin, allow, with_path_alone
from .limits import Limits
from .metrics import ServiceMetrics
from .problems import HttpProblem, to_problem

LOG = logging.getLogger("clipfake.service")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
CLOSE = {"Connection": "close"}  # the rest of the body is not read
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Body:
    """Body of a request as received so far."""

    read: int = 0
    done: bool = False
    refused: HttpProblem | None = None


class ServiceMiddleware:
    """ASGI middleware around the whole application: limits, access checks, problem responses and metrics."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: ServiceMetrics,
        token: str,
        public: bool,
        folder: Path,
        paths: Collection[str] = (),
        origin: Origin | None = None,
    ) -> None:
        self.app, self.limits, self.metrics, self.paths = app, limits, metrics, paths
        self.token, self.public, self.folder, self.origin = token, public, folder, origin
        self._in_progress = 0  # number of requests
        self._held = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, body = time.perf_counter(), Body()
        status = 0  # of the response, once it has started
        method = scope["method"]
        scope = dict(scope)
        if method == "HEAD":  # the headers of GET, without its body (RFC 9110, 9.3.2)
            scope["method"] = "GET"

        async def limited_receive() -> Message:
            if body.refused is None:
                message = await receive()
                self._count_bytes(body, message)
            # to the application a refused body is a client that disconnected; `checked_send` raises the reason
            return message if body.refused is None else {"type": "http.disconnect"}

        async def checked_send(message: Message) -> None:
            nonlocal status
            starts = message["type"] == "http.response.start"
            if starts:
                if body.refused is not None:
                    raise body.refused
                headers = Headers(raw=message["headers"])
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k not in headers]
                message["headers"] = [*message["headers"], *extra]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)  # waits until the client has taken earlier responses, and may be cancelled then
            if starts:
                status = message["status"]

        self._in_progress += 1
        try:
            scope = with_path_alone(scope)
            scope["path"] = without_slash(scope["path"], self.paths)
            self._check(scope)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, limited_receive, checked_send)
        except Exception as e:  # noqa: BLE001  the outermost handler: every error becomes a response
            problem, body.refused = body.refused or self._problem(e, body), None
            if problem:
                self.metrics.problems.labels(problem.kind).inc()
            if problem and not status:
                if "GET" in (allowed := problem.headers.get("Allow", "")) and "HEAD" not in allowed:
                    problem.headers["Allow"] = f"{allowed}, HEAD"
                await problem.response()(scope, receive, checked_send)
        finally:
            self._in_progress -= 1
            self._held -= body.read
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(method if method in METHODS else "other", route, status or 499).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _count_bytes(self, body: Body, message: Message) -> None:
        """Add a chunk to the byte counts, and mark the body as refused if a limit is exceeded."""
        size = len(message.get("body", b""))
        body.read += size
        self._held += size
        body.done = body.done or not message.get("more_body", False)
        if body.read > self.limits.request_bytes:
            body.refused = too_large(self.limits.request_bytes)
        elif self._held > self.limits.held_bytes:
            detail = f"the requests in progress hold {self._held:,} bytes already; try again in a second"
            body.refused = HttpProblem("busy", detail, headers={"Retry-After": "1", **CLOSE})

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        allow(scope, self.token, public=self.public, origin=self.origin)
        if self._in_progress > self.limits.requests and scope["path"] not in OPEN:
            message = f"{self.limits.requests} requests are in progress already; try again in a second"
            raise HttpProblem("busy", message, headers={"Retry-After": "1"})
        if (coding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
            message = f"the body is compressed (Content-Encoding: {coding[:80]}); send it as it is"
            raise HttpProblem("wrong-media", message, headers={"Accept-Encoding": "identity", **CLOSE})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limits.request_bytes:
            raise too_large(self.limits.request_bytes)

    def _problem(self, error: Exception, body: Body) -> HttpProblem | None:
        if isinstance(error, ClientDisconnect):
            return None
        if isinstance(error, TimeoutError):
            message = f"the request took more than {self.limits.seconds:g} s; send fewer images at once, or try again"
            return HttpProblem("too-slow", message) if body.done else HttpProblem("slow-upload", message, headers=CLOSE)
        problem = to_problem(error, self.folder)
        if isinstance(error, Damaged | Unreadable):
            LOG.error("request failed: %s", error)
        elif problem.status == 500 and problem is not error:  # an HttpProblem was logged where it was raised
            LOG.error("request failed", exc_info=error)
        return problem


def without_slash(path: str, paths: Collection[str]) -> str:
    """Return a path without its final slash if that is one of the paths of the service.

    >>> without_slash("/healthz/", {"/healthz"}), without_slash("/v1/thumbnails/a/", {"/healthz"})
    ('/healthz', '/v1/thumbnails/a/')
    """
    return path[:-1] if path.endswith("/") and path[:-1] in paths else path


def too_large(max_bytes: int) -> HttpProblem:
    """The problem of a request body that is too large."""
    message = f"the request is larger than the {max_bytes:,} bytes allowed; send fewer or smaller images"
    return HttpProblem("too-large", message, headers=CLOSE)
