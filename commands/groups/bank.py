"""`clipfake bank …`: add and remove labelled images, which are the evidence for verdicts."""

from __future__ import annotations

from typing import Annotated

import typer

from ...errors import SourceError
from ..choices import KnownLabel
from ..options import STORE, DeviceOption, EncoderOption, FollowLinksOption, JsonOption, StoreOption
from ..terminal import LOADING, print_message, print_result, transient_message

app = typer.Typer(no_args_is_help=True, help="Add a source to the bank of labelled images, or remove one.")


@app.command("add")
def bank_add_command(
    folder: Annotated[str, typer.Argument(help="Folder, zip or tar archive of images.")],
    source: Annotated[
        str, typer.Option("--source", metavar="NAME", help="Name of the source of the images, such as the generator.")
    ],
    label: Annotated[KnownLabel, typer.Option("--label", help="Label of the images.")],
    store: StoreOption = STORE,
    follow_links: FollowLinksOption = False,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Add images to the bank. The next query compares with them; nothing is trained.

    clipfake bank add new-generator/ --source new-generator --label fake --store mystore
    """
    from ...indexer.encoder_spec import EncoderSpec
    from ...session import Session
    from ...show.progress_display import index_summary
    from ...store.records import LABEL_NUMBERS

    session = Session(store, encoder=EncoderSpec(encoder or "", device))
    session.encoder_spec.ensure_available()
    with transient_message(LOADING):
        from ...indexer.index import index
        from ...indexer.sources.folders import expand
        from ...indexer.sources.named_source import NamedSource

        model = session.main_encoder
    if session.notice:
        print_message(session.notice)
    expanded = expand([folder], follow_links=follow_links)
    sources = [NamedSource(inner, source, LABEL_NUMBERS[label.value]) for inner in expanded]
    report = index(sources, session.store, model)
    print_result(report.to_dict() if as_json else index_summary(report.to_dict()))


@app.command("remove")
def bank_remove_command(
    source: Annotated[str, typer.Argument(help="Name of the source.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove the rows of a source from the bank; `clipfake store undo` restores them.

    clipfake bank remove newgan --store mystore
    """
    from ...show.store_tables import count
    from ...store.filter import Filter
    from ...store.store import Store

    removed = Store.open(store).delete(Filter(source=source), f"bank remove {source}").rows
    if not removed:
        raise SourceError(f"the store {store} has no source {source}; `clipfake store info` lists its sources")
    print_result({"source": source, "removed": removed} if as_json else f"{count(removed, 'row')} of {source} removed")
