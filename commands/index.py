"""`clipfake index`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SourceError
from .choices import Decoder, Engine, Precision
from .options import (
    MACHINES,
    MODEL,
    OUTPUT,
    ROBUSTNESS,
    SPEED,
    STORE,
    DecoderOption,
    DeviceOption,
    EncoderOption,
    FoldersArgument,
    FoldersOption,
    FollowLinksOption,
    JsonOption,
    PrecisionOption,
    StoreOption,
    UntrainedOption,
    chosen_folders,
    part_of,
    share_of,
)
from .terminal import print_message, print_result, shell_quoted

if TYPE_CHECKING:
    from ..indexer.distributed.worker_pool import WorkerPool
    from ..indexer.encoder_spec import EncoderSpec
    from ..indexer.index_run import Folders, IndexOptions, Progress
    from ..indexer.report import IndexReport
    from ..store.records import Ints
    from ..store.space import Space
    from ..store.store import Store


def index_command(
    arguments: FoldersArgument = None,
    folders: FoldersOption = None,
    store: StoreOption = STORE,
    columns: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Columns of tables with other headings, as in image_path=filename,target=class. Fields: image_path, "
            "file_name, target, label, category, generator, source.",
        ),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Index at most N images, drawn from every source and both classes."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of --limit.")] = 0,
    follow_links: FollowLinksOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only report what would be indexed, without opening an image.")
    ] = False,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", metavar="", help="Only count the classes, before and after reducing them to real and fake."
        ),
    ] = False,
    encoder: EncoderOption = None,
    untrained: UntrainedOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    no_text: Annotated[
        bool,
        typer.Option("--no-text", metavar="", help="Do not embed the names of categories.", rich_help_panel=MODEL),
    ] = False,
    views: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Further vectors of each image from the same pass, as in main,layers,crops: layers, crops, crops5, "
            "raw, pooled, tokens (default: those that the store has).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of images encoded at once (default: 64; on a GPU up to 1024, fewer for a larger model).",
            rich_help_panel=SPEED,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of decoding threads (default: one per core).", rich_help_panel=SPEED
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of processes (default: one; several for a GPU).",
            rich_help_panel=SPEED,
        ),
    ] = None,
    decoder: DecoderOption = Decoder.auto,
    no_thumbnails: Annotated[
        bool,
        typer.Option(
            "--no-thumbnails", metavar="", help="Do not store a small JPEG of each image.", rich_help_panel=SPEED
        ),
    ] = False,
    rows_per_shard: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of rows in one file of the store (default: 16384).", rich_help_panel=SPEED
        ),
    ] = None,
    max_bad: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            help="Share of unreadable images that ends the run, as 1% or 0.01.",
            rich_help_panel=ROBUSTNESS,
        ),
    ] = "100%",
    retry_quarantined: Annotated[
        bool,
        typer.Option(
            "--retry-quarantined",
            metavar="",
            help="Retry images that an earlier run could not read.",
            rich_help_panel=ROBUSTNESS,
        ),
    ] = False,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync", metavar="", help="Delete rows of these folders whose file is gone.", rich_help_panel=ROBUSTNESS
        ),
    ] = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Index only the I-th of N equal parts, one on each machine.", rich_help_panel=MACHINES
        ),
    ] = "",
    engine: Annotated[
        Engine, typer.Option(help="Run workers on this machine or on a Ray cluster.", rich_help_panel=MACHINES)
    ] = Engine.local,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR", help="Address of a Ray cluster (default: start a local one).", rich_help_panel=MACHINES
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of Ray workers (default: one per GPU, or one per machine).",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    log_json: Annotated[
        Path | None,
        typer.Option(
            "--log-json",
            metavar="FILE",
            help="Append progress as JSON lines to this file.",
            dir_okay=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write metrics to this .prom file for Prometheus' node exporter.",
            dir_okay=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index every image of some folders into a store. Resumable; running it again adds only what is new.

    Reads ArtiFact's folders (metadata.csv), real/ and fake/ trees, zip and tar archives, and folders without labels.

    clipfake index --folders data/* --store mystore
    """
    from ..indexer.decoding.nvimagecodec import require_decoder
    from ..indexer.distributed.process_pool import processes_for
    from ..indexer.index import IndexOptions, plan
    from ..indexer.progress import all_of
    from ..indexer.sources.folders import count, expand
    from ..indexer.sources.tables.columns import ColumnNames
    from ..indexer.views.kinds import parse_views
    from ..show.progress_display import class_table, index_progress, index_summary
    from ..store.store import Store

    try:
        named_columns = ColumnNames.parse(columns)
    except ValueError as e:
        raise typer.BadParameter(str(e), param_hint="--columns") from e
    sources = expand(chosen_folders(arguments, folders), named_columns, follow_links=follow_links)
    if dry_run or stats:
        planned = {"dry_run": True, **plan(sources, limit, seed).to_dict()}
        table = class_table(planned) if stats else index_summary(planned, planned=True)
        print_result(planned if as_json else table)
        if planned["skipped"] and not planned["sources"]:
            print_message("nothing would be indexed; the reasons are listed above")
            raise SystemExit(1)
        return
    options = IndexOptions(
        batch_size=batch_size,
        threads=threads or IndexOptions.threads,
        text=not no_text,
        thumbnails=not no_thumbnails,
        limit=limit,
        seed=seed,
        max_bad=share_of(max_bad, "--max-bad"),
        retry_quarantined=retry_quarantined,
        sync=sync,
        part=part_of(part),
        rows_per_shard=rows_per_shard or IndexOptions.rows_per_shard,
        views=None if views is None else parse_views(views),
        decoder=decoder.value,
    )

    def expected_images() -> int | None:
        """Estimate how many images the run will read."""
        total = count(sources)
        return None if total is None else min(total // (options.part or (0, 1))[1], limit or total)

    require_decoder(options.decoder)
    Store(store).require_room()  # before the encoder is loaded, which takes a while
    if options.part is None:
        Store(store).require_free()
    spec = _choose_encoder(store, encoder, device, precision.value, untrained=untrained)
    if processes is None:
        processes = 1 if options.part else processes_for(device, expected_images, options.threads)
    if engine is Engine.local:
        spec.ensure_available()  # downloaded once, before several workers need it; Ray workers download their own copy
    placement = Placement(engine, processes, ray_address, ray_workers)
    if placement.has_workers:
        options = _views_for_workers(spec, store, options, sources)
    with indexer_of(spec, store, options, placement) as (space, run):
        _print_notice(space.encoder)
        opened = Store.create(store, space)
        with index_progress(expected_images) as bar, progress_writers(log_json, prometheus) as writers:
            report = run(sources, opened, options, all_of(*writers, *([bar] if bar else [])))
    print_result(report.to_dict() if as_json else index_summary(report.to_dict()))
    for lost in report.lost:
        print_message(lost)
    if report.interrupted:
        stored = report.added + report.replaced
        print_message(f"stopped; {stored:,} images of this run are stored. Run the same command to resume.")
        raise SystemExit(130)
    if report.skipped and not report.done + report.known:
        print_message("nothing was indexed; the reasons are listed above")
        raise SystemExit(1)
    for line in rows_without_views(opened):
        print_message(line)
    if not as_json:
        print_message(next_step(opened.snapshot().column("labels"), shell_quoted(store)))


def rows_without_views(store: Store) -> list[str]:
    """Return a hint for each view that rows indexed before it was made do not have."""
    from ..indexer.views.create import views_of
    from ..store.named_vectors import open_named_vectors

    snapshot = store.snapshot()
    missing = {name: open_named_vectors(store.folder, name).missing(snapshot) for name in views_of(store)}
    return [
        f"{mask.sum():,} rows have no vector {name}; add them with "
        f"`clipfake store add-vectors {name} --store {shell_quoted(store.folder)}`"
        for name, mask in missing.items()
        if mask.any()
    ]


def next_step(labels: Ints, store: str) -> str:
    """Return the hint after indexing: train if the store has both classes, else index the missing one.

    >>> import numpy as np
    >>> next_step(np.array([0, 1]), "mystore")
    'next: clipfake train --from-store --store mystore'
    """
    from ..store.records import FAKE, REAL

    missing = [name for name, label in (("real", REAL), ("fake", FAKE)) if not (labels == label).any()]
    if missing:
        return f"next: index {' and '.join(missing)} images into this store too; training needs both classes"
    return f"next: clipfake train --from-store --store {store}"


@dataclass(frozen=True)
class Placement:
    """Where images are embedded: engine, processes and workers."""

    engine: Engine
    processes: int
    ray_address: str | None
    ray_workers: int | None

    @property
    def has_workers(self) -> bool:
        """True if images are embedded in other processes."""
        return self.engine is Engine.ray or self.processes > 1


def _views_for_workers(spec: EncoderSpec, store: Path, options: IndexOptions, sources: Folders) -> IndexOptions:
    """Create the views before there are workers, which only read them; returns the options with their names."""
    from ..indexer.index import prepare_views
    from ..indexer.views.create import views_of
    from ..show.progress_display import status_line
    from ..store.store import Store

    stored = views_of(Store(store))
    wanted = stored if options.views is None else options.views
    if not set(wanted) <= set(stored):
        with status_line("making the views"):
            encoder = spec.load()
            prepare_views(sources, Store.create(store, encoder.space), encoder, options)
    return replace(options, views=wanted)


@contextmanager
def indexer_of(
    spec: EncoderSpec, store: Path, options: IndexOptions, placement: Placement
) -> Iterator[tuple[Space, Callable[[Folders, Store, IndexOptions, Progress], IndexReport]]]:
    """Load the encoder in this process or in workers; yields its embedding space and a function that indexes."""
    from ..indexer.distributed.process_pool import ProcessPool
    from ..indexer.distributed.worker_pool import index_with
    from ..indexer.index import index
    from ..show.progress_display import status_line

    pool: WorkerPool | None = None
    with status_line("loading the encoder"):
        if placement.engine is Engine.ray:
            from ..indexer.distributed.ray_pool import RayPool

            pool = RayPool(spec, store, options, address=placement.ray_address, count=placement.ray_workers)
        elif placement.processes > 1:
            pool = ProcessPool(spec, store, options, placement.processes)
        else:
            encoder = spec.load()
    if pool is None:
        yield encoder.space, lambda sources, opened, *more: index(sources, opened, encoder, *more)
        return
    with pool:
        yield pool.space, partial(index_with, pool)


@contextmanager
def progress_writers(log: Path | None, prometheus: Path | None) -> Iterator[list[Progress]]:
    """Yield the progress writers for --prometheus and --log-json; the log is appended to and closed at the end."""
    from ..indexer.progress import JsonLines, PrometheusFile

    writers: list[Progress] = [PrometheusFile(prometheus)] if prometheus else []
    if log is None:
        yield writers
        return
    try:
        stream = log.open("a", encoding="utf-8")
    except OSError as e:
        raise SourceError(f"the log {log} cannot be written ({e.strerror}); choose another file") from e
    with stream:
        yield [*writers, JsonLines(stream)]


def _choose_encoder(
    store: Path, encoder: str | None, device: str, precision: str, *, untrained: bool = False
) -> EncoderSpec:
    """Specification of the encoder to load: `encoder`, else the store's own, else the default."""
    from ..errors import NoStore
    from ..indexer.encoder_spec import EncoderSpec
    from ..indexer.encoders.encoder_name import DEFAULT_ENCODER, with_random_weights
    from ..store.store import Store

    spec = EncoderSpec(encoder or DEFAULT_ENCODER, device, precision)
    if encoder is None:
        with suppress(NoStore):
            spec = EncoderSpec.of_space(Store.open(store).snapshot().space, device, precision)
    return replace(spec, name=with_random_weights(spec.name)) if untrained else spec


def _print_notice(encoder: str) -> None:
    """Print the notice of an encoder that is not a real one."""
    from ..session import encoder_notice

    if notice := encoder_notice(encoder):
        print_message(notice)
