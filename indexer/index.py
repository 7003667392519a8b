"""The job: every image of some folders into a store, once, whatever happened before. Running it again does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import TEXT, Block, Rows
from ..store.store import Store
from ..store.writer import AppendCounts
from .decoding.nvimagecodec import gpu_decoder_for
from .decoding.reader import DecodedImage, ImageReader
from .encoders.base import Encoder
from .index_run import Folders, IndexRun, Progress, accepted_images
from .index_run import IndexOptions as IndexOptions  # of this file's interface too
from .pipeline import EncodedBatch, Pipeline, batched
from .report import IndexReport
from .shard_inbox import Sink, StagedWriter, commit, take_in
from .sources.base import text
from .sources.folders import listing

PATIENCE = 60.0  # seconds that a part waits for another to commit


def plan(folders: Folders, limit: int | None = None) -> IndexReport:
    """List what would be indexed, without opening an image (`--dry-run`, `--stats`); raises SourceError."""
    report = IndexReport()
    for _ in accepted_images(islice(listing(folders), limit), report):
        pass
    return report


def index(
    folders: Folders,
    store: Store,
    encoder: Encoder,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
) -> IndexReport:
    """Bring every image of these folders into the store; what is there already is left alone.

    One bad image is a row of the report's `skipped`. Ctrl-C finishes the batches in flight and seals them; the same
    call goes on from there.

    Parameters
    ----------
    folders : folders, archives, tables of paths, URLs, or quoted patterns of these
    progress : shown the report while it grows

    Raises
    ------
    SourceError
        One of the folders cannot be read, or more images were bad than `options.max_bad` allows.
    SpaceMismatch, Locked
        The store is of another encoder, or another process is writing.
    EncoderError
        The device has no memory for even one image.
    StoreError
        The store cannot be written. Whatever ends a run, what was stored stays.
    """
    encoder.space.require(store.snapshot().space, f"the store {store.folder}")
    if options.part is not None:
        return _index_part(folders, store, encoder, options, progress)
    with store.writer("index", rows_per_shard=options.rows_per_shard) as writer:
        take_in(writer, store.folder)
        return _Local(folders, writer, store.folder, encoder, options, progress).go()


def _index_part(
    folders: Folders, store: Store, encoder: Encoder, options: IndexOptions, progress: Progress | None
) -> IndexReport:
    """One of several processes: the lock is held only to commit, at the start and at the end."""
    commit(store)
    aside = StagedWriter(store, options.rows_per_shard)
    try:
        return _Local(folders, aside, store.folder, encoder, options, progress).go()
    finally:
        aside.seal()
        commit(store, patience=PATIENCE)


class _Local(IndexRun):
    """A run whose images are read and encoded in this process."""

    def __init__(
        self,
        folders: Folders,
        sink: Sink,
        folder: Path,
        encoder: Encoder,
        options: IndexOptions,
        progress: Progress | None,
    ) -> None:
        super().__init__(folders, sink, folder, options, progress)
        self.encoder = encoder
        self.report.batch_size = options.batch_size or encoder.batch_size
        self._texts = dict(sink.snapshot.texts)

    def go(self) -> IndexReport:
        report, options = self.report, self.options
        gpu_decoder = gpu_decoder_for(options.decoder, self.encoder, thumbnails=options.thumbnails)
        reader = ImageReader(
            self.encoder.shrink,
            thumbnails=options.thumbnails,
            encoder_reduces=self.encoder.reduces,
            gpu_decoder=gpu_decoder,
        )
        pipeline = Pipeline(self.encoder, reader, report.batch_size, options.threads)
        report.stages, report.decoded_by = pipeline.stages, pipeline.decoded_by
        try:
            report.interrupted = not pipeline.run(batched(self.fresh(), report.batch_size), self._write)
            report.batch_size = pipeline.batch_size
            if not report.interrupted:
                self.finish()
        finally:
            report.unused = gpu_decoder.unused if gpu_decoder else ""
            self.note_bad()
            report.ended = True
            self.report_progress()
        return report

    def _write(self, batch: EncodedBatch) -> None:
        texts = texts_of(batch, self.encoder, self._texts) if self.options.text else {}
        counts = AppendCounts()
        if batch.images:
            counts = self.sink.append(block_of(batch, self.encoder, texts, self.options.thumbnails))
        self.settle([found.entry.key for found in batch.images], counts, batch.refused)


def texts_of(batch: EncodedBatch, encoder: Encoder, known: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Text vectors of the batch's categories; each category is embedded once and then `known`."""
    categories = {found.entry.category for found in batch.images} - {""}
    if encoder.has_text and (new := sorted(categories - known.keys())):
        known.update(zip(new, encoder.encode_texts(new), strict=True))
    return {category: known[category] for category in categories & known.keys()}


def block_of(batch: EncodedBatch, encoder: Encoder, texts: dict[str, npt.NDArray[Any]], thumbnails: bool) -> Block:
    """A batch as the store takes it."""
    small = tuple(image.thumbnail_jpeg() for image in batch.images) if thumbnails else ()
    return Block(encoder.space, rows_of(batch.images), batch.vectors, small, texts)


def rows_of(images: Sequence[DecodedImage]) -> Rows:
    """Make rows of metadata, one for each image."""
    return Rows(
        keys=np.array([i.entry.key for i in images], TEXT),
        labels=np.array([i.entry.label for i in images], np.int8),
        targets=np.array([i.entry.target for i in images], np.int16),
        sources=np.array([i.entry.source for i in images], TEXT),
        generators=np.array([i.entry.generator for i in images], TEXT),
        categories=np.array([i.entry.category for i in images], TEXT),
        paths=np.array([text(i.entry.path) for i in images], TEXT),
        digests=np.frombuffer(b"".join(i.image.digest for i in images), "V16"),
        bytes=np.array([i.image.size for i in images], np.int64),
        widths=np.array([i.width for i in images], np.int32),
        heights=np.array([i.height for i in images], np.int32),
        formats=np.array([i.image.format for i in images], TEXT),
        qualities=np.array([i.image.quality for i in images], np.int16),
        mtimes=np.array([i.time for i in images], np.int64),
    )
