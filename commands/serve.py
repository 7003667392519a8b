"""`clipfake serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from .opening import encoder_name, notice, notice_of, open_encoder
from .options import (
    DEFAULT_HEAD,
    STORE,
    DeviceOption,
    EncoderOption,
    NameOption,
    PrecisionOption,
    SearchAtOption,
    StoreOption,
    elsewhere_of,
)
from .terminal import LOADING, passing, say

ENGINE_SECONDS = 15.0  # an engine has for a search; well below what the service gives a request


def serve_command(
    store: StoreOption = STORE,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own wants CLIPFAKE_TOKEN set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="A proxy on this machine lets others in: everything takes the token.")
    ] = False,
    head: NameOption = DEFAULT_HEAD,
    search_at: SearchAtOption = "",
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Answer over HTTP, and show a page at /. Nothing leaves this machine, and no image is kept.

    clipfake serve --store mystore
    """
    from ..indexer.encoders.hub import bring
    from ..store.store import Store

    opened = Store.open(store)
    bring(encoder_name(store, encoder))
    with passing(LOADING):
        from ..indexer.decoding.image import decode, thumbnail
        from ..indexer.embedding import degraded_by_name  # which brings torch: a wrong store is told before it
        from ..service.server import serve

        model = open_encoder(store, encoder, head=head, device=device, precision=precision)
    notice(model)
    serve(
        opened,
        model,
        decode,
        thumbnail,
        host=host,
        port=port,
        proxy=proxy,
        head=head,
        notice=notice_of(model),
        degraded=degraded_by_name,
        elsewhere=elsewhere_of(search_at, timeout=ENGINE_SECONDS),
        on_ready=lambda url: say(f"{url}  (Ctrl-C ends it)"),
    )
