"""`clipfake store …`: look after a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    STORE,
    CategoriesOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    PrecisionOption,
    SourcesOption,
    StoreOption,
    rows_of,
)
from .terminal import quoted, show

app = typer.Typer(no_args_is_help=True, help="Look after a store.")


@app.command("info")
def store_info_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """What a store holds: sizes, labels, sources, encoder, indexes, heads.

    clipfake store info --store mystore
    """
    from ..show.store_tables import store_info
    from ..store.maintenance.info import info
    from ..store.store import Store

    told = info(Store.open(store)).to_dict()
    show(told if as_json else store_info(told))


@app.command("snapshots")
def store_snapshots_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """The snapshots one can go back to.

    clipfake store snapshots --store mystore
    """
    from ..show.store_tables import history as history_table
    from ..store.maintenance.info import history
    from ..store.store import Store

    told = history(Store.open(store)).to_dict()
    show(told if as_json else history_table(told))


@app.command("undo")
def store_undo_command(
    number: Annotated[int, typer.Argument(help="Of the snapshot to go back to.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Go back to the rows of an earlier snapshot. Nothing is lost: this too can be undone.

    clipfake store undo 3 --store mystore
    """
    from ..store.store import Store

    snapshot = Store.open(store).undo(number)
    told = {"snapshot": snapshot.number, "rows": len(snapshot)}
    show(told if as_json else f"snapshot {snapshot.number} has the {len(snapshot):,} rows of snapshot {number}")


@app.command("index")
def store_index_command(
    store: StoreOption = STORE,
    kind: Annotated[str, typer.Option(help="plain, compact, exact, or auto: by the number of rows.")] = "auto",
    anew: Annotated[bool, typer.Option("--anew", help="Build it again even if it could be added to.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Build or add to the k-NN indexes, one a label. Search is right without them, and quicker with them.

    clipfake store index --store mystore
    """
    from ..show.store_tables import built
    from ..store.maintenance.build_index import build_index
    from ..store.store import Store

    if kind not in ("auto", "exact", "plain", "compact"):
        raise typer.BadParameter(f"{kind} is none of auto, exact, plain, compact", param_hint="--kind")
    told = build_index(Store.open(store), kind, seed=seed, anew=anew).to_dict()  # type: ignore[arg-type]
    show(told if as_json else built(told))


@app.command("verify")
def store_verify_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Look at every byte: checksums, counts, leftovers, indexes. Exit 1 where something is damaged.

    clipfake store verify --store mystore
    """
    from ..show.store_tables import health
    from ..store.maintenance.verify import verify

    found = verify(store)
    show(found.to_dict() if as_json else health(found.to_dict(), quoted(store)))
    if not found.sound:
        raise SystemExit(1)


@app.command("repair")
def store_repair_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Take out what is damaged, and never more; it is kept in the store's quarantine/ folder. Earlier snapshots that
    need it are set aside too.

    clipfake store repair --store mystore
    """
    from ..show.store_tables import repaired
    from ..store.maintenance.repair import repair

    told = repair(store).to_dict()
    show(told if as_json else repaired(told))


@app.command("compact")
def store_compact_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Give back the room of deleted rows and join small shards. Earlier snapshots cannot be gone back to after it.

    clipfake store compact --store mystore
    """
    from ..show.store_tables import compacted
    from ..store.maintenance.compact import compact
    from ..store.store import Store

    told = compact(Store.open(store)).to_dict()
    show(told if as_json else compacted(told))


@app.command("export")
def store_export_command(
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    store: StoreOption = STORE,
    layout: Annotated[
        str, typer.Option(help="clip-retrieval, numpy, or parquet (without vectors).")
    ] = "clip-retrieval",
    label: LabelOption = "",
    source: SourcesOption = "",
    category: CategoriesOption = "",
    rows_per_file: Annotated[int, typer.Option(min=1, help="Of the layout clip-retrieval.")] = 1_000_000,
    as_json: JsonOption = False,
) -> None:
    """Write rows as numpy and parquet files that other tools read; `store import` makes the same store of them again.

    clipfake store export --to embeddings --layout clip-retrieval --store mystore
    """
    from ..show.store_tables import exported
    from ..store.exchange.export_rows import export_rows
    from ..store.store import Store

    snapshot = Store.open(store).snapshot()
    where = rows_of(snapshot, label, source, category)
    told = export_rows(snapshot, to, layout, where, rows_per_file).to_dict()  # type: ignore[arg-type]
    show(told if as_json else exported(told))


@app.command("import")
def store_import_command(
    folder: Annotated[Path, typer.Argument(help="What `store export` or clip-retrieval wrote.")],
    store: StoreOption = STORE,
    encoder: Annotated[
        str | None,
        typer.Option(help="Hub id or directory of the encoder that made the vectors, where the folder does not say."),
    ] = None,
    space: Annotated[str, typer.Option(help="Or a name for their space: they can be searched, not asked.")] = "",
    label: Annotated[str, typer.Option(help="real, fake or unknown, of rows that have none.")] = "unknown",
    source: Annotated[str, typer.Option(help="Of rows that have none.")] = "",
    column: Annotated[
        list[str] | None, typer.Option(help="label=theirs, also source, category and generator; several times.")
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Bring vectors to unit length.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take rows with their vectors into a store, new or not. Doing it twice changes nothing.

    clipfake store import embeddings --store mystore
    """
    from ..show.store_tables import imported
    from ..store.exchange.import_rows import ImportDefaults, ImportFolder, foreign_space, import_rows, label_of

    columns = dict(one.partition("=")[::2] for one in column or ())
    if wrong := [name for name, theirs in columns.items() if not theirs]:
        raise typer.BadParameter(f"{wrong[0]} names no column of theirs; write label=theirs", param_hint="--column")
    if wrong := [name for name in columns if name not in ("label", "source", "category", "generator")]:
        raise typer.BadParameter(f"{wrong[0]} is none of label, source, category, generator", param_hint="--column")
    if label not in ("real", "fake", "unknown"):
        raise typer.BadParameter(f"{label} is none of real, fake, unknown", param_hint="--label")
    if encoder:
        from ..indexer.encoders.load import load_encoder

        where = load_encoder(encoder).space
    else:
        where = foreign_space(space, ImportFolder.open(folder).dim) if space else None  # type: ignore[assignment]
    meaning = ImportDefaults(source, label_of(label), columns)
    told = import_rows(folder, store, where, meaning, normalise=normalise).to_dict()
    show(told if as_json else imported(told))


@app.command("column")
def store_column_command(
    name: Annotated[str, typer.Argument(help="Of the column, new or to be filled further.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help="Hub id or directory; depth:NAME for a depth model of transformers.")
    ],
    folders: Annotated[
        list[str] | None, typer.Option("--folders", help="Where the images are now, if not where they were.")
    ] = None,
    store: StoreOption = STORE,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Give the rows a second vector: another encoder's. Their images are read again; what is stored stays.

    Heads learn from it with `clipfake train --columns main,NAME`. Stopped, the same command goes on.

    clipfake store column depth --encoder depth:Intel/dpt-large --store mystore
    """
    from ..indexer.add_vectors import add_vectors
    from ..indexer.encoders.load import load_encoder
    from ..indexer.sources.folders import expand
    from ..show.progress_display import status_line
    from ..show.store_tables import filled
    from ..store.store import Store

    opened = Store.open(store)
    found = expand(folders) if folders else None
    model = load_encoder(encoder, device=device, precision=precision)
    with status_line("encoding") as tell:
        told = add_vectors(opened, name, model, found, lambda done, rows: tell(f"{done:,} of {rows:,} rows"))
    show(told.to_dict() if as_json else filled(told.to_dict()))
    if told.missing and not told.added and not told.known:
        raise SystemExit(1)


@app.command("duplicates")
def store_duplicates_command(
    store: StoreOption = STORE,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Cosine similarity from which two are one.")] = 0.98,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Nearest rows looked at of each row.")] = 10,
    label: LabelOption = "",
    source: SourcesOption = "",
    category: CategoriesOption = "",
    out: Annotated[
        Path | None, typer.Option(help="Keep the nearest rows of all in this folder; stopped, it goes on from there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find copies: compare every row with every other, exactly, and group those that are alike.

    Copies on both sides of a split, or called real here and fake there, make a data set's figures look better than they
    are. Time grows with the square of the rows.

    clipfake store duplicates --threshold 0.98 --store mystore
    """
    import tempfile

    from ..show.progress_display import status_line
    from ..show.store_tables import doubled
    from ..store.maintenance.near_duplicates import all_pairs, find_duplicates
    from ..store.store import Store

    snapshot = Store.open(store).snapshot()
    where = rows_of(snapshot, label, source, category)
    with tempfile.TemporaryDirectory() as scratch, status_line("comparing") as tell:
        pairs = all_pairs(
            snapshot, out or Path(scratch) / "pairs", k, where, lambda done, rows: tell(f"{done:,} of {rows:,} rows")
        )
        told = find_duplicates(snapshot, pairs, threshold).to_dict()
    show(told if as_json else doubled(told))


@app.command("push")
def store_push_command(
    to: Annotated[str, typer.Option("--to", help="URL of a Qdrant server, or a folder for Qdrant Edge, without one.")],
    store: StoreOption = STORE,
    collection: Annotated[str, typer.Option(help="Its name on the server.")] = "clipfake",
    shards: Annotated[int | None, typer.Option(min=1, help="Parts of a new collection, spread over the nodes.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of each part of a new collection.")] = None,
    quantised: Annotated[str, typer.Option(help="int8 or binary: a small copy in memory to search with.")] = "",
    recall: Annotated[float, typer.Option(min=0.5, max=1, help="Searches are planned for this recall@10.")] = 0.99,
    queries: Annotated[int, typer.Option(min=0, help="To measure recall with; 0: not at all, all exact.")] = 100,
    anew: Annotated[bool, typer.Option("--anew", help="Drop what is there first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the rows into a search engine beyond this machine. Killed and run again, it goes on. Counts, then asks it.

    clipfake store push --to http://node1:6333 --store mystore
    """
    from ..show.store_tables import pushed
    from ..store.backends.push import push
    from ..store.backends.qdrant import open_backend
    from ..store.backends.qdrant_protocol import CollectionLayout
    from ..store.store import Store

    if quantised not in ("", "int8", "binary"):
        raise typer.BadParameter(f"{quantised} is neither int8 nor binary", param_hint="--quantised")
    engine = open_backend(to, collection, CollectionLayout(shards, replicas, quantised))  # type: ignore[arg-type]
    try:
        snapshot = Store.open(store).snapshot()
        told = push(snapshot, engine, recall=recall, queries=queries, anew=anew).to_dict()
    finally:
        engine.close()
    show(told if as_json else pushed(told))
