"""Run the service on a port with uvicorn until SIGINT or SIGTERM, then finish the accepted requests."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import ClipfakeError, MissingExtra
from ..store.store import Store

TOKEN = "CLIPFAKE_TOKEN"  # the environment variable


def serve(
    store: Store,
    encoder: Any,
    decode: Callable[[bytes], Any],
    thumbnail: Callable[[Any], bytes],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    proxy: bool = False,
    origin: str = "",
    on_ready: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serve until SIGINT or SIGTERM. The options are those of `clipfake.service.app.app`.

    Parameters
    ----------
    port : port to listen on; 0 takes any free one
    token : secret that clients send (default: the environment variable CLIPFAKE_TOKEN)
    proxy
        Whether a proxy forwards requests from other machines. If so, everything requires the token, whatever the host.
    origin : origin of the page as browsers see it, like https://name, if a proxy changes the Host header
    on_ready : called with the URL as soon as the port is open

    Raises
    ------
    MissingExtra
        The extra `serve` is not installed.
    SpaceMismatch
        The store was written by another encoder.
    ClipfakeError
        Other machines can reach the service but no token is set, the origin is none or the service local, or the port
        cannot be opened.
    """
    try:
        from .app import app
        from .http.access import LOOPBACK, Origin
        from .http.descriptors import fitted, raise_descriptor_limit
        from .http.uvicorn_server import ServiceServer
        from .limits import Limits
    except ModuleNotFoundError as e:
        raise MissingExtra("the service", "serve") from e
    token = os.environ.get(TOKEN, "") if token is None else token
    public = proxy or host not in LOOPBACK
    if public and not token:
        raise ClipfakeError(
            f"a service on {host}{' behind a proxy' if proxy else ''} can be reached from other machines and needs a "
            f"token; set the environment variable {TOKEN} to a secret, or serve on 127.0.0.1 without --proxy"
        )
    if origin and not public:
        raise ClipfakeError(f"the origin {origin} is that of a page behind a proxy; add --proxy, or leave it out")
    if origin and not Origin.parse(origin):
        raise ClipfakeError(f"{origin!r} is not the origin of a page; give its scheme and name, as https://name")
    limits = fitted(options.pop("limits", None) or Limits(), raise_descriptor_limit())
    application = app(
        store, encoder, decode, thumbnail, token=token, public=public, origin=origin, limits=limits, **options
    )
    server = ServiceServer(application, limits, application.state.service.metrics, proxy=proxy)
    with listening(host, port) as listener, suppress(KeyboardInterrupt):
        name = f"[{host}]" if ":" in host else host
        on_ready(f"http://{name}:{listener.getsockname()[1]}")  # requests sent before the server runs are queued
        server.run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises ClipfakeError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP explicitly: otherwise asyncio leaves Nagle's algorithm on, which adds 40 ms to each response
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as e:
        listener.close()
        raise ClipfakeError(f"cannot listen on {host}, port {port}: {e.strerror or e}; choose another --port") from e
    return listener
