"""Indexing on many machines through Ray. Units of work and receipts cross Ray, never pixels. Needs the extra `ray`.

The driver holds the store's lock, lists, and hands units (names of images, about 100 bytes each) to one worker a
device. A worker reads, decodes, embeds and seals its unit as a shard in the store's `incoming` folder, on a disk that
all machines share; the driver takes the shard in. A worker that dies costs the units it was at: they are run again.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..store.errors import MissingExtra, SourceError
from ..store.shard import write_shard
from ..store.store import Appended, Store, Writer
from .encoder import Encoder
from .entry import Entry
from .incoming import FOLDER, block_at, joined, take_in, take_in_one
from .index import block_of, default_batch_size, texts_of
from .load import load_encoder
from .pipeline import Encoded, Pipeline, batched
from .report import IndexReport
from .run import Folders, IndexOptions, Progress, Run

AHEAD = 2  # units a worker has at a time: one is read and decoded while the other is encoded
SEARCHING = 5.0  # seconds without a receipt before Ctrl-C and lost workers are looked for


@dataclass(frozen=True)
class EncoderName:
    """What a worker needs to load the encoder itself; the arguments of `load_encoder`."""

    name: str
    device: str = "auto"
    precision: str = "auto"

    def load(self) -> Encoder:
        return load_encoder(self.name, device=self.device, precision=self.precision)


@dataclass(frozen=True)
class Unit:
    """Images that are embedded together; its id says which, whoever listed them and whenever."""

    id: str
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Unit:
        digest = hashlib.blake2b(digest_size=16)
        for entry in entries:
            digest.update(entry.key.encode() + b"\0")
        return cls(digest.hexdigest(), tuple(entries))


@dataclass(frozen=True)
class Receipt:
    """What became of a unit."""

    unit: str
    shard: str  # its file name in the store's `incoming` folder, "" where no image of the unit could be read
    refused: tuple[tuple[Entry, str], ...]
    busy: dict[str, float]  # stage -> seconds of work


class Worker:
    """One device's part of the run, in a process of Ray's. Plain Python, so that it is tested without Ray."""

    def __init__(self, encoder: EncoderName, folder: Path, options: IndexOptions) -> None:
        self._encoder = encoder.load()
        self._folder, self._options = folder, options
        self._texts: dict[str, npt.NDArray[Any]] = {}

    def where(self) -> tuple[str, int]:
        """Host and process."""
        return socket.gethostname(), os.getpid()

    def work(self, unit: Unit) -> Receipt:
        """Embed a unit and seal it. Doing it again writes the same file again."""
        options, encoder = self._options, self._encoder
        done: list[Encoded] = []
        size = options.batch_size or default_batch_size(encoder)
        pipeline = Pipeline(encoder, size, options.threads, thumbnails=options.thumbnails)
        pipeline.run(unit.entries, done.append)
        busy = {name: stage.seconds / stage.workers for name, stage in pipeline.stages.items()}
        blocks = [
            block_of(batch, encoder, texts_of(batch, encoder, self._texts) if options.text else {}, options.thumbnails)
            for batch in done
            if batch.images
        ]
        shard = f"{unit.id}.h5" if blocks else ""
        if blocks:
            write_shard(self._folder / FOLDER / shard, joined(blocks))
        return Receipt(unit.id, shard, tuple(row for batch in done for row in batch.refused), busy)


def index_with_ray(
    folders: Folders,
    store: Store,
    encoder: EncoderName,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
) -> IndexReport:
    """`index` with the embedding done by Ray's workers; the same rows come out.

    Parameters
    ----------
    options
        `rows_per_shard` is the size of a unit.
    address
        Of a running Ray cluster ("auto", "ray://..."); None starts one on this machine.
    workers
        None: one a GPU of the cluster, or one a machine where there is none.

    Raises
    ------
    MissingExtra
        Ray is not installed.
    SourceError, SpaceMismatch, StoreError
        What was stored stays.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as e:
        raise MissingExtra("--engine ray", "ray") from e
    if options.shard is not None:
        raise SourceError("--shard splits the work without an engine; leave it out with --engine ray")
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with store.writer("index with ray", rows_per_shard=options.rows_per_shard) as writer:
            take_in(writer, store.folder)
            return _RayRun(folders, writer, store.folder, encoder, options, progress).spread(ray, workers)
    finally:
        if mine:
            ray.shutdown()


class _RayRun(Run):
    """The driver."""

    def __init__(
        self,
        folders: Folders,
        writer: Writer,
        folder: Path,
        encoder: EncoderName,
        options: IndexOptions,
        progress: Progress | None,
    ) -> None:
        super().__init__(folders, writer, folder, options, progress)
        self.report.batch_size = options.batch_size or 0
        self._writer, self._name = writer, encoder

    def spread(self, ray: Any, workers: int | None) -> IndexReport:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        on_gpu = gpus > 0 and self._name.device in ("auto", "cuda", "all")
        count = workers or (gpus if on_gpu else len(ray.nodes()))
        actor = ray.remote(Worker).options(
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=AHEAD,
            num_gpus=1 if on_gpu else 0,
            num_cpus=0,  # the workers' threads are told in the options; Ray's count of cores only spreads them
            scheduling_strategy="SPREAD",
        )
        # Absolute: a worker's working directory is its own.
        crew = [actor.remote(self._name, self.folder.resolve(), self.options) for _ in range(count)]
        self.report.workers = [
            f"{host} process {process}" for host, process in ray.get([w.where.remote() for w in crew])
        ]
        units = map(Unit.of, batched(self.fresh(), self.options.rows_per_shard))
        try:
            self._dispatch(ray, crew, units)
            self.finish()
        except KeyboardInterrupt:
            self.report.interrupted = True
        finally:
            for worker in crew:
                ray.kill(worker)
            self.note_bad()
            self.report.ended = True
            self.tell()
        return self.report

    def _dispatch(self, ray: Any, crew: Sequence[Any], units: Iterator[Unit]) -> None:
        """Keep every worker at `AHEAD` units, and settle each receipt as it comes."""
        under_way: dict[Any, Any] = {}  # the promise of a receipt -> its worker
        free = [worker for worker in crew for _ in range(AHEAD)]
        more = True
        while more or under_way:
            while more and free:
                unit = next(units, None)
                if unit is None:
                    more = False
                else:
                    worker = free.pop(0)
                    under_way[worker.work.remote(unit)] = worker
            if under_way:
                ready, _ = ray.wait(list(under_way), num_returns=1, timeout=SEARCHING)
                for promise in ready:
                    free.append(under_way.pop(promise))
                    self._settle_receipt(ray.get(promise))

    def _settle_receipt(self, receipt: Receipt) -> None:
        keys: list[str] = []
        told = Appended()
        if receipt.shard:
            path = self.folder / FOLDER / receipt.shard
            keys = block_at(path).rows.keys.tolist()
            told = take_in_one(self._writer, path)
        for name, seconds in receipt.busy.items():
            self.report.stage(name, len(self.report.workers)).add(seconds)
        for torn in (self.folder / FOLDER).glob(f"{receipt.unit}.h5.*"):  # of a worker that died over this unit
            torn.unlink(missing_ok=True)
        self.settle(keys, told, receipt.refused)
