"""`clipfake serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from .choices import Precision
from .options import (
    DEFAULT_HEAD,
    STORE,
    DeviceOption,
    EncoderOption,
    NameOption,
    PrecisionOption,
    SearchBackendOption,
    StoreOption,
    searcher_for,
)
from .terminal import LOADING, print_message, transient_message

BACKEND_SECONDS = 15.0  # timeout of one search by a back end, well below the timeout of a request


def serve_command(
    store: StoreOption = STORE,
    host: Annotated[
        str,
        typer.Option(metavar="ADDR", help="Address to listen on; any but 127.0.0.1 and ::1 needs CLIPFAKE_TOKEN set."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0 takes any free one.")
    ] = 8000,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy", metavar="", help="Require the token for everything, because a proxy forwards requests."
        ),
    ] = False,
    origin: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Address of the page, like https://name, if a proxy does not pass on the Host header."
        ),
    ] = "",
    head: NameOption = DEFAULT_HEAD,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    search_backend: SearchBackendOption = "",
) -> None:
    """Serve verdicts over HTTP, with a page at /. No queried image is kept, and nothing leaves this machine.

    clipfake serve --store mystore
    """
    from ..indexer.encoder_spec import EncoderSpec
    from ..session import Session

    session = Session(store, head, encoder=EncoderSpec(encoder or "", device, precision.value))
    session.encoder_spec.ensure_available()
    with transient_message(LOADING):
        from ..indexer.batch_encoder import BatchEncoder
        from ..indexer.decoding.image import decode, thumbnail
        from ..indexer.degradations import degraded_by_name
        from ..service.server import serve

        model, covered = BatchEncoder(session.query_encoder), session.covered
    opened, notice = session.store, session.notice
    del session  # its snapshot would keep deleted files open for as long as the service runs
    if notice:
        print_message(notice)
    serve(
        opened,
        model,
        decode,
        thumbnail,
        host=host,
        port=port,
        proxy=proxy,
        origin=origin,
        head=head,
        notice=notice,
        degraded=degraded_by_name,
        covered=covered,
        searcher_for=searcher_for(search_backend, timeout=BACKEND_SECONDS),
        on_ready=lambda url: print_message(f"serving on {url} (press Ctrl-C to stop)"),
    )
