"""The service on a port, until it is told to stop; then it finishes what it accepted."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..store.errors import ClipfakeError, MissingExtra
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
    **options: Any,
) -> None:
    """Serve until SIGINT or SIGTERM. The options are those of `clipfake.service.app.app`.

    Parameters
    ----------
    token : None takes it from the environment, CLIPFAKE_TOKEN

    Raises
    ------
    MissingExtra, SpaceMismatch, or ClipfakeError where others may come and there is no token
    """
    try:
        import uvicorn

        from .app import app
        from .gate import LOOPBACK
        from .limits import Limits
    except ModuleNotFoundError as e:
        raise MissingExtra("the service", "serve") from e
    token = os.environ.get(TOKEN, "") if token is None else token
    public = host not in LOOPBACK
    if public and not token:
        raise ClipfakeError(
            f"--host {host} lets others than this machine ask; set {TOKEN} to a secret of your choosing, "
            f"or leave --host at 127.0.0.1"
        )
    limits: Limits = options.setdefault("limits", Limits())
    made = app(store, encoder, decode, thumbnail, token=token, public=public, **options)
    uvicorn.run(
        made,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + 5,
        timeout_keep_alive=30,
        lifespan="on",
    )
