"""`clipfake index`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SourceError
from .opening import Embeds, create_store, encoder_name, notice
from .options import (
    STORE,
    DecoderOption,
    DeviceOption,
    EncoderOption,
    FoldersOption,
    JsonOption,
    PrecisionOption,
    StoreOption,
    part_of,
    share_of,
)
from .terminal import quoted, say, show

if TYPE_CHECKING:
    from ..indexer.distributed.worker import EncoderSpec
    from ..indexer.distributed.worker_pool import WorkerPool
    from ..indexer.index_run import Folders, IndexOptions, Progress
    from ..indexer.report import IndexReport
    from ..store.records import Ints
    from ..store.store import Store


def index_command(
    folders: FoldersOption,
    store: StoreOption = STORE,
    encoder: EncoderOption = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Random weights from a seed: for speed only.")] = False,
    text: Annotated[
        bool, typer.Option(help="Embed each distinct category, where the encoder has a text tower.")
    ] = True,
    thumbnails: Annotated[bool, typer.Option(help="Keep a small picture of each image.")] = True,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images the encoder sees at once.  [default: 64, on a GPU 1024]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="That decode.  [default: one a core]")] = None,
    decoder: DecoderOption = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Images at most.")] = None,
    max_bad: Annotated[str, typer.Option(help="End the run if more images than this cannot be read.")] = "100%",
    retry_quarantined: Annotated[bool, typer.Option("--retry-quarantined", help="Try bad ones again.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Drop rows of these folders whose file is gone.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n equal parts, for many machines.")] = "",
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Of a file of the store, more for a billion images.  [default: 16384]")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Of this machine.  [default: one, several for a GPU and many images]")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: embedding by Ray's workers.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster.  [default: one on this machine]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of Ray.  [default: one a GPU, or one a machine]")] = None,
    log_json: Annotated[Path | None, typer.Option("--log-json", help="Tell the run here as JSON lines.")] = None,
    prometheus: Annotated[Path | None, typer.Option(help="Keep the run's figures in this .prom file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Only count classes, before and after binarising.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring every image of some folders into a store.

    Understands ArtiFact's folders (metadata.csv), real/ and fake/ trees, and folders without labels. Running it again
    does nothing; after an interruption it goes on.

    clipfake index --folders data/* --store mystore
    """
    from ..indexer.decoding.nvimagecodec import DECODERS, require_decoder
    from ..indexer.distributed.process_pool import processes_for
    from ..indexer.distributed.worker import EncoderSpec
    from ..indexer.encoders.hub import bring
    from ..indexer.index import IndexOptions, plan
    from ..indexer.progress import all_of
    from ..indexer.sources.folders import count, expand
    from ..show.progress_display import class_table, index_progress, index_summary
    from ..store.store import Store

    found = expand(folders)
    if dry_run or stats:
        planned = {"dry_run": True, **plan(found, limit).to_dict()}
        drawn = class_table(planned) if stats else index_summary(planned, planned=True)
        show(planned if as_json else drawn)
        return
    options = IndexOptions(
        batch_size=batch_size,
        threads=threads or IndexOptions.threads,
        text=text,
        thumbnails=thumbnails,
        limit=limit,
        max_bad=share_of(max_bad),
        retry_quarantined=retry_quarantined,
        sync=sync,
        shard=part_of(shard),
        rows_per_shard=rows_per_shard or IndexOptions.rows_per_shard,
        decoder=decoder,
    )
    if engine not in ("local", "ray"):
        raise typer.BadParameter(f"{engine} is neither local nor ray", param_hint="--engine")
    if decoder not in DECODERS:
        raise typer.BadParameter(f"{decoder} is none of {', '.join(DECODERS)}", param_hint="--decoder")

    def images() -> int | None:
        """About how many the run will look at."""
        told = count(found)
        return None if told is None else min(told // (options.shard or (0, 1))[1], limit or told)

    require_decoder(decoder)
    Store(store).require_room()  # before an encoder is waited for
    if options.shard is None:
        Store(store).require_free()
    named = EncoderSpec(encoder_name(store, encoder, untrained=untrained), device, precision)
    if processes is None:
        processes = 1 if options.shard else processes_for(device, images, options.threads)
    if engine == "local":
        bring(named.name)  # once, before several workers look for it; those of Ray have it where they are
    with hired(named, store, options, engine, processes, address, workers) as (who, go):
        notice(who)
        opened = create_store(store, who)
        with index_progress(images) as bar, machines_told(log_json, prometheus) as told:
            report = go(found, opened, options, all_of(*told, *([bar] if bar else [])))
    show(report.to_dict() if as_json else index_summary(report.to_dict()))
    for lost in report.lost:
        say(lost)
    if report.interrupted:
        say(f"stopped; {report.added + report.replaced} images of this run are stored. Run the same command to go on.")
        raise SystemExit(130)
    if not as_json:
        say(next_step(opened.snapshot().column("labels"), quoted(store)))


def next_step(labels: Ints, store: str) -> str:
    """What comes after indexing: training, as soon as there are two classes to tell apart.

    >>> import numpy as np
    >>> next_step(np.array([0, 1]), "mystore")
    'next: clipfake train --from-store --store mystore'
    """
    from ..store.records import FAKE, REAL

    lacking = [word for word, label in (("real", REAL), ("fake", FAKE)) if not (labels == label).any()]
    if lacking:
        return f"next: index {' and '.join(lacking)} images into this store too; a head tells real from fake"
    return f"next: clipfake train --from-store --store {store}"


@contextmanager
def hired(
    encoder: EncoderSpec,
    store: Path,
    options: IndexOptions,
    engine: str,
    processes: int,
    address: str | None,
    workers: int | None,
) -> Iterator[tuple[Embeds, Callable[[Folders, Store, IndexOptions, Progress], IndexReport]]]:
    """Who embeds the images, ready to, and the function that has them do it."""
    from ..indexer.distributed.process_pool import ProcessPool
    from ..indexer.distributed.worker_pool import index_with
    from ..indexer.index import index
    from ..show.progress_display import status_line

    with status_line("loading the encoder"):
        if engine == "ray":
            from ..indexer.distributed.ray_pool import RayPool

            crew: WorkerPool = RayPool(encoder, store, options, address=address, count=workers)
        elif processes > 1:
            crew = ProcessPool(encoder, store, options, processes)
        else:
            model = encoder.load()
    if engine == "local" and processes == 1:
        yield model, lambda folders, opened, *told: index(folders, opened, model, *told)
        return
    with crew:
        yield crew, partial(index_with, crew)


@contextmanager
def machines_told(log: Path | None, prometheus: Path | None) -> Iterator[list[Progress]]:
    """What tells a run to machines; the log is opened to be added to and closed at the end."""
    from ..indexer.progress import JsonLines, PrometheusFile

    told: list[Progress] = [PrometheusFile(prometheus)] if prometheus else []
    if log is None:
        yield told
        return
    try:
        stream = log.open("a", encoding="utf-8")
    except OSError as e:
        raise SourceError(f"the log {log} cannot be written ({e.strerror}); name another file") from e
    with stream:
        yield [*told, JsonLines(stream)]
