"""`clipfake bank …`: the rows that evidence is drawn from."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import SourceError
from .opening import encoder_name, notice, open_encoder
from .options import STORE, DeviceOption, JsonOption, StoreOption
from .terminal import LOADING, passing, show

app = typer.Typer(no_args_is_help=True, help="The rows that evidence is drawn from: add and remove a source.")


@app.command("add")
def bank_add_command(
    folder: Annotated[str, typer.Argument(help="Folder, zip or tar of images.")],
    source: Annotated[str, typer.Option("--source", help="What to call them, such as the generator's name.")],
    label: Annotated[str, typer.Option("--label", help="What they are: real or fake.")],
    store: StoreOption = STORE,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make the next query know these images, without training.

    clipfake bank add new-generator/ --source new-generator --label fake --store mystore
    """
    from ..indexer.encoders.hub import bring
    from ..show.progress_display import index_summary
    from ..store.records import FAKE, REAL
    from ..store.store import Store

    labels = {"real": REAL, "fake": FAKE}
    if label not in labels:
        raise typer.BadParameter(f"{label} is neither real nor fake", param_hint="--label")
    opened = Store.open(store)
    bring(encoder_name(store, None))
    with passing(LOADING):
        from ..indexer.index import index
        from ..indexer.sources.folders import expand
        from ..indexer.sources.named_source import NamedSource

        model = open_encoder(store, None, device=device)
    notice(model)
    report = index([NamedSource(one, source, labels[label]) for one in expand([folder])], opened, model)
    show(report.to_dict() if as_json else index_summary(report.to_dict()))


@app.command("remove")
def bank_remove_command(
    source: Annotated[str, typer.Argument(help="Name of the source.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Take a source's rows out of the bank; `clipfake store undo` brings them back.

    clipfake bank remove newgan --store mystore
    """
    from ..show.store_tables import count
    from ..store.store import Store

    with Store.open(store).writer(f"bank remove {source}") as writer:
        where = writer.snapshot.column("sources") == source
        if not where.any():
            raise SourceError(f"the store {store} has no source {source}; `clipfake store info` lists them")
        removed = writer.delete(where)
    show({"source": source, "removed": removed} if as_json else f"{count(removed, 'row')} of {source} removed")
