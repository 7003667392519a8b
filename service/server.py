"""The service on a port, until it is told to stop; then it finishes what it accepted."""

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
    port : 0 takes a free one
    token : None takes it from the environment, CLIPFAKE_TOKEN
    proxy
        Others' requests are passed on to this machine: then too everything takes the token, whatever the host.
    tell : called with the URL as soon as it can be asked

    Raises
    ------
    MissingExtra, SpaceMismatch, or ClipfakeError where others may come and there is no token, or the port is taken
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
            f"others than this machine may ask a service on {host}{' behind a proxy' if proxy else ''}; set {TOKEN} to "
            f"a secret of your choosing, or serve on 127.0.0.1 without a proxy"
        )
    limits: Limits = options.setdefault("limits", Limits())
    made = app(store, encoder, decode, thumbnail, token=token, public=public, **options)
    config = uvicorn.Config(
        made,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 5,
        timeout_keep_alive=30,
        lifespan="on",
    )
    with listening(host, port) as ours, suppress(KeyboardInterrupt):
        name = f"[{host}]" if ":" in host else host
        on_ready(f"http://{name}:{ours.getsockname()[1]}")  # whoever asks before the server runs is kept waiting
        uvicorn.Server(config).run(sockets=[ours])


def listening(host: str, port: int) -> socket.socket:
    """An open port; raises ClipfakeError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP by name, or asyncio does not know that it is and leaves Nagle's algorithm on: 40 ms more an answer
    ours = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind((host, port))
        ours.listen()
    except OSError as e:
        ours.close()
        raise ClipfakeError(f"cannot serve on {host}, port {port}: {e.strerror or e}; choose another --port") from e
    return ours
