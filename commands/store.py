"""`clipfake store …`: inspect, maintain, import and export a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .choices import ExportLayout, IndexKind, Precision, Quantization, RowLabel
from .options import (
    STORE,
    CategoriesOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    PrecisionOption,
    SeedOption,
    SourcesOption,
    StoreOption,
    rows_of,
)
from .terminal import print_message, print_result, shell_quoted

app = typer.Typer(no_args_is_help=True, help="Inspect, maintain, import and export a store.")


@app.command("info")
def store_info_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Show what a store holds: sizes, labels, sources, encoder, indexes, heads.

    clipfake store info --store mystore
    """
    from ..show.store_tables import store_info
    from ..store.maintenance.info import info
    from ..store.store import Store

    report = info(Store.open(store)).to_dict()
    print_result(report if as_json else store_info(report))


@app.command("snapshots")
def store_snapshots_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """List the snapshots that `undo` can return to.

    clipfake store snapshots --store mystore
    """
    from ..show.store_tables import history as history_table
    from ..store.maintenance.info import history
    from ..store.store import Store

    report = history(Store.open(store)).to_dict()
    print_result(report if as_json else history_table(report))


@app.command("undo")
def store_undo_command(
    number: Annotated[int, typer.Argument(help="Number of the snapshot to return to.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Return to the rows of an earlier snapshot. Nothing is lost: this can be undone too.

    clipfake store undo 3 --store mystore
    """
    from ..store.store import Store

    snapshot = Store.open(store).undo(number)
    report = {"snapshot": snapshot.number, "rows": len(snapshot)}
    print_result(
        report if as_json else f"snapshot {snapshot.number} has the {len(snapshot):,} rows of snapshot {number}"
    )


@app.command("index")
def store_index_command(
    store: StoreOption = STORE,
    kind: Annotated[
        IndexKind, typer.Option(help="Kind of index; auto chooses by the number of rows.")
    ] = IndexKind.auto,
    vectors: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Stored vectors to index, as `clipfake train --vectors` (comma-separated)."),
    ] = "main",
    anew: Annotated[
        bool, typer.Option("--anew", metavar="", help="Build from scratch, even if rows could be added to an index.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Build the k-NN indexes, one per label, or add new rows to them. Searches work without them, but slower.

    Heads trained with --vectors search an index of the same vectors.

    clipfake store index --store mystore
    """
    from ..show.store_tables import built
    from ..store.maintenance.build_index import build_index
    from ..store.store import Store

    names = [name for name in vectors.split(",") if name]
    report = build_index(Store.open(store), kind.value, vectors=names, seed=seed, anew=anew).to_dict()
    print_result(report if as_json else built(report))


@app.command("verify")
def store_verify_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Verify every byte: checksums, counts, leftovers, indexes. Exits with 1 if something is damaged.

    clipfake store verify --store mystore
    """
    from ..show.store_tables import health
    from ..store.maintenance.verify import verify

    report = verify(store)
    print_result(report.to_dict() if as_json else health(report.to_dict(), shell_quoted(store)))
    if not report.sound:
        raise SystemExit(1)


@app.command("repair")
def store_repair_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Move damaged files to the store's quarantine/ folder, and nothing else.

    Earlier snapshots that need a damaged file are moved too.

    clipfake store repair --store mystore
    """
    from ..show.store_tables import repaired
    from ..store.maintenance.repair import repair

    report = repair(store).to_dict()
    print_result(report if as_json else repaired(report))


@app.command("compact")
def store_compact_command(
    store: StoreOption = STORE,
    grace: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            help="Minutes for which earlier snapshots are kept, so that copies of the store under way are whole. The "
            "first command that writes after them frees the space; 0 frees it at once.",
            min=0,
            max=1_000_000,
        ),
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Reclaim the space of deleted rows and merge small shards. Earlier snapshots are removed after an hour.

    clipfake store compact --store mystore
    """
    from datetime import timedelta

    from ..show.store_tables import compacted
    from ..store.maintenance.compact import compact
    from ..store.store import Store

    report = compact(Store.open(store), grace=timedelta(minutes=grace)).to_dict()
    print_result(report if as_json else compacted(report))


@app.command("export")
def store_export_command(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write, new or empty.", file_okay=False)],
    store: StoreOption = STORE,
    layout: Annotated[
        ExportLayout, typer.Option(help="Layout of the files; parquet has no vectors.")
    ] = ExportLayout.clip_retrieval,
    label: LabelOption = "",
    source: SourcesOption = "",
    category: CategoriesOption = "",
    rows_per_file: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of rows in a file of the layout clip-retrieval.")
    ] = 1_000_000,
    as_json: JsonOption = False,
) -> None:
    """Export rows as numpy and parquet files that other tools read. `store import` restores the same store from them.

    clipfake store export --to embeddings --layout clip-retrieval --store mystore
    """
    from ..show.store_tables import exported
    from ..store.exchange.export_rows import export_rows
    from ..store.store import Store

    snapshot = Store.open(store).snapshot()
    where = rows_of(snapshot, label, source, category)
    report = export_rows(snapshot, to, layout.value, where, rows_per_file).to_dict()
    print_result(report if as_json else exported(report))


@app.command("import")
def store_import_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `store export` or clip-retrieval wrote.")],
    store: StoreOption = STORE,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Hub id or directory of the encoder that made the vectors, if the folder does not say."
        ),
    ] = None,
    space: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name for the embedding space when the encoder is unknown (search only)."),
    ] = "",
    label: Annotated[RowLabel, typer.Option(help="Label for rows that have none.")] = RowLabel.unknown,
    source: Annotated[str, typer.Option(metavar="NAME", help="Source for rows that have none.")] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN", help="Column to read label, source, category or generator from; repeatable."
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", metavar="", help="Scale vectors to unit length.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Import rows with their vectors into a store, new or existing. Importing twice changes nothing.

    clipfake store import embeddings --store mystore
    """
    from ..show.store_tables import imported
    from ..store.exchange.import_rows import ImportDefaults, ImportFolder, foreign_space, import_rows, label_of

    columns = dict(option.partition("=")[::2] for option in column or ())
    if incomplete := [name for name, their_name in columns.items() if not their_name]:
        message = f"{incomplete[0]} names no column; write for example {incomplete[0]}=COLUMN"
        raise typer.BadParameter(message, param_hint="--column")
    if unknown := [name for name in columns if name not in ("label", "source", "category", "generator")]:
        raise typer.BadParameter(f"{unknown[0]} is none of label, source, category, generator", param_hint="--column")
    if encoder:
        from ..indexer.encoders.load import load_encoder

        vector_space = load_encoder(encoder).space
    else:
        vector_space = foreign_space(space, ImportFolder.open(folder).dim) if space else None  # type: ignore[assignment]
    defaults = ImportDefaults(source, label_of(label.value), columns)
    report = import_rows(folder, store, vector_space, defaults, normalise=normalize).to_dict()
    print_result(report if as_json else imported(report))


@app.command("add-vectors")
def store_add_vectors_command(
    name: Annotated[
        str, typer.Argument(help="Name of the vectors, new or to be completed; without --encoder, that of a view.")
    ],
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="NAME",
            help="Another encoder, named as for `index`, or depth:NAME for a depth model (default: the store's own, "
            "which makes a view: layers, crops, crops5, raw, pooled or tokens).",
        ),
    ] = None,
    folders: Annotated[
        list[str] | None,
        typer.Option("--folders", metavar="PATH...", help="Folders of the images, if they have moved since indexing."),
    ] = None,
    store: StoreOption = STORE,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    as_json: JsonOption = False,
) -> None:
    """Add further vectors to the stored rows. Their images are read again. Resumable.

    `clipfake train --vectors main,NAME` trains on both.

    clipfake store add-vectors layers --store mystore

    clipfake store add-vectors depth --encoder depth:Intel/dpt-large --store mystore
    """
    from ..indexer.add_vectors import add_vectors, add_view
    from ..indexer.encoder_spec import EncoderSpec
    from ..indexer.sources.folders import expand
    from ..indexer.views.kinds import parse_views
    from ..show.progress_display import status_line
    from ..show.store_tables import filled
    from ..store.named_vectors import open_named_vectors, vector_names
    from ..store.store import Store

    opened = Store.open(store)
    is_known = name in vector_names(opened.folder)
    is_view = encoder is None and (not is_known or open_named_vectors(opened.folder, name).view is not None)
    if is_view:
        parse_views(name)
    space = opened.snapshot().space if is_view or not is_known else open_named_vectors(opened.folder, name).space
    spec = EncoderSpec(encoder, device, precision.value) if encoder else None
    sources = expand(folders) if folders else None
    model = (spec or EncoderSpec.of_space(space, device, precision.value)).load()
    add = add_view if is_view else add_vectors
    with status_line("encoding") as show_step:
        report = add(opened, name, model, sources, lambda done, rows: show_step(f"{done:,} of {rows:,} rows"))
    print_result(report.to_dict() if as_json else filled(report.to_dict()))
    if report.missing and not report.added and not report.known:
        raise SystemExit(1)


@app.command("duplicates")
def store_duplicates_command(
    store: StoreOption = STORE,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Cosine similarity from which two rows are copies.")
    ] = 0.98,
    k: Annotated[
        int, typer.Option("-k", min=1, max=100, metavar="N", help="Number of neighbours compared per row.")
    ] = 10,
    label: LabelOption = "",
    source: SourcesOption = "",
    category: CategoriesOption = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder that keeps every row's neighbours, so that the command is resumable.",
            file_okay=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find copies: compare every row with every other, exactly, and group the similar ones.

    Copies on both sides of a split, or labelled both real and fake, make results on a data set look better than they
    are. The time grows with the square of the number of rows.

    clipfake store duplicates --threshold 0.98 --store mystore
    """
    import tempfile

    from ..show.progress_display import status_line
    from ..show.store_tables import doubled
    from ..store.maintenance.near_duplicates import all_pairs, find_duplicates
    from ..store.store import Store

    snapshot = Store.open(store).snapshot()
    where = rows_of(snapshot, label, source, category)
    with tempfile.TemporaryDirectory() as scratch, status_line("comparing") as show_step:
        pairs = all_pairs(
            snapshot,
            out or Path(scratch) / "pairs",
            k,
            where,
            lambda done, rows: show_step(f"{done:,} of {rows:,} rows"),
        )
        report = find_duplicates(snapshot, pairs, threshold).to_dict()
    print_result(report if as_json else doubled(report))


@app.command("curate")
def store_curate_command(
    rows: Annotated[int, typer.Option("--rows", min=2, metavar="N", help="Number of rows to keep.")],
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="Folder of the new store, new or empty.", file_okay=False)
    ],
    store: StoreOption = STORE,
    vectors: Annotated[
        str, typer.Option(metavar="NAMES", help="Stored vectors that are compared (comma-separated).")
    ] = "main",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Copy the rows that best represent the labelled ones into a new store. The store itself is not changed.

    Half are real and half fake, each source of a class has equally many, and within a source they are chosen by
    facility location. Vectors, thumbnails and named vectors are copied; heads are not.

    clipfake store curate --rows 10000 --to smallstore --store mystore
    """
    from ..show.progress_display import status_line
    from ..show.store_tables import curated
    from ..store.maintenance.curate import curate
    from ..store.store import Store

    names = [name for name in vectors.split(",") if name]
    with status_line("curating") as show_step:
        report = curate(Store.open(store), to, rows, vectors=names, seed=seed, on_progress=show_step).to_dict()
    print_result(report if as_json else curated(report))
    if not as_json:
        print_message(f"next: clipfake train --store {shell_quoted(to)}")


@app.command("push")
def store_push_command(
    to: Annotated[
        str, typer.Option("--to", metavar="URL|DIR", help="URL of a Qdrant server, or folder for Qdrant Edge.")
    ],
    store: StoreOption = STORE,
    collection: Annotated[str, typer.Option(metavar="NAME", help="Name of the collection on the server.")] = "clipfake",
    qdrant_shards: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of Qdrant shards of a new collection.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of replicas of each shard of a new collection.")
    ] = None,
    quantized: Annotated[
        Quantization | None, typer.Option(help="Compression of the copy in memory that searches use.")
    ] = None,
    recall: Annotated[float, typer.Option(min=0.5, max=1, metavar="X", help="Target recall@10 of searches.")] = 0.99,
    queries: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Number of queries that measure recall; 0 searches exactly instead."),
    ] = 100,
    anew: Annotated[bool, typer.Option("--anew", metavar="", help="Delete the collection first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the rows to a search back end. Resumable. Verifies row counts, then measures recall.

    clipfake store push --to http://node1:6333 --store mystore
    """
    from ..show.store_tables import pushed
    from ..store.backends.push import PushOptions, push
    from ..store.backends.qdrant import open_backend
    from ..store.backends.qdrant_base import CollectionLayout
    from ..store.store import Store

    layout = CollectionLayout(qdrant_shards, replicas, quantized.value if quantized else "")
    backend = open_backend(to, collection, layout)
    try:
        snapshot = Store.open(store).snapshot()
        report = push(snapshot, backend, PushOptions(recall, queries, anew=anew)).to_dict()
    finally:
        backend.close()
    print_result(report if as_json else pushed(report))
