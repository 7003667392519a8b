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
    on_ready : called with the URL as soon as the port is open

    Raises
    ------
    MissingExtra
        The extra `serve` is not installed.
    SpaceMismatch
        The store was written by another encoder.
    ClipfakeError
        Other machines can reach the service but no token is set, or the port cannot be opened.
    """
    try:
        import uvicorn

        from .app import app
        from .limits import Limits
        from .middleware import LOOPBACK
    except ModuleNotFoundError as e:
        raise MissingExtra("the service", "serve") from e
    token = os.environ.get(TOKEN, "") if token is None else token
    public = proxy or host not in LOOPBACK
    if public and not token:
        raise ClipfakeError(
            f"a service on {host}{' behind a proxy' if proxy else ''} can be reached from other machines and needs a "
            f"token; set the environment variable {TOKEN} to a secret, or serve on 127.0.0.1 without --proxy"
        )
    limits: Limits = options.setdefault("limits", Limits())
    application = app(store, encoder, decode, thumbnail, token=token, public=public, **options)
    config = uvicorn.Config(
        application,
        log_level="warning",
        use_colors=False,  # the command escapes control characters on stderr, whoever writes them
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 5,
        timeout_keep_alive=30,
        lifespan="on",
    )
    with listening(host, port) as listener, suppress(KeyboardInterrupt):
        name = f"[{host}]" if ":" in host else host
        on_ready(f"http://{name}:{listener.getsockname()[1]}")  # requests sent before the server runs are queued
        uvicorn.Server(config).run(sockets=[listener])


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
