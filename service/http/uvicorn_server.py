"""uvicorn's server with the limits on connections, which survives that no descriptor is free."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..limits import Limits
from ..metrics import ServiceMetrics
from .protocol import HttpConnection
from .registry import ConnectionRegistry
from .repeated_log import RepeatedLogFilter, few_repeats

LOG = logging.getLogger("clipfake.service")
ACCEPTED = 16  # connections accepted at once, before any of them is counted
FREED = 4  # connections closed if no descriptor is free for another one
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class ServiceServer(uvicorn.Server):  # type: ignore[misc]
    """A server of one application.

    It always runs on asyncio's event loop and with h11, whatever else is installed: the deadlines are made for these.
    """

    def __init__(self, application: FastAPI, limits: Limits, metrics: ServiceMetrics, *, proxy: bool = False) -> None:
        self.registry, self._backlog = ConnectionRegistry(limits, metrics), limits.backlog
        self._repeated = RepeatedLogFilter()
        super().__init__(
            uvicorn.Config(
                application,
                loop="asyncio",
                http=partial(HttpConnection, limits=limits, registry=self.registry),
                ws="none",
                lifespan="on",
                log_level="warning",
                use_colors=False,  # the command escapes control characters on stderr, whoever writes them
                server_header=False,
                proxy_headers=proxy,
                backlog=ACCEPTED,
                timeout_graceful_shutdown=int(limits.seconds) + 5,
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with few_repeats(self._repeated):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._handle_error)
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(self._backlog)  # asyncio accepts as many at once as it lets wait

    async def on_tick(self, counter: int) -> bool:
        self._repeated.flush()
        return bool(await super().on_tick(counter))

    def _handle_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Make room if no descriptor was free to accept a connection; asyncio tries again in a second."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTOR and "accept" in context["message"]:
            LOG.warning("no file descriptor is free for a new connection; raise `ulimit -n`")
            self.registry.make_room(FREED)
        else:
            loop.default_exception_handler(context)
