"""Index the images of folders into a store. Resumable: images already stored are skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.named_vectors import MAIN
from ..store.records import TEXT, Block, Rows
from ..store.store import Store
from ..store.writer import AppendCounts
from .decoding.nvimagecodec import gpu_decoder_for
from .decoding.reader import DecodedImage, ImageReader
from .encoders.base import Encoder
from .index_run import Folders, IndexRun, Progress, accepted_images
from .index_run import IndexOptions as IndexOptions  # re-exported
from .pipeline import EncodedBatch, Pipeline, batched
from .report import IndexReport
from .sample import drawn_uniformly
from .shard_inbox import Sink, StagedWriter, adopt_shards, commit
from .sources.base import to_text
from .sources.image_ref import ImageRef
from .views.create import create_views, encoder_with_views, views_of

COMMIT_TIMEOUT = 60.0  # seconds that a part waits for another process to commit


def plan(folders: Folders, limit: int | None = None, seed: int = 0) -> IndexReport:
    """List what would be indexed, without opening an image (`--dry-run`, `--stats`); raises SourceError."""
    report = IndexReport()
    for _ in accepted_images(folders, report, limit, seed):
        pass
    return report


def index(
    folders: Folders,
    store: Store,
    encoder: Encoder,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
) -> IndexReport:
    """Add every image of the folders to the store; unchanged images that are already stored are skipped.

    A bad image is listed in the report's `skipped`. Ctrl-C finishes the batches in flight and stores them; the same
    call resumes from there.

    Parameters
    ----------
    folders : folders, archives, tables of paths, URLs, or quoted patterns of these
    progress : called with the report while the run goes on

    Returns
    -------
    IndexReport
        Counts, skipped images and speed of the run.

    Raises
    ------
    SourceError
        A folder cannot be read, or the share of bad images exceeds `options.max_bad`.
    SpaceMismatch, Locked
        The store belongs to another encoder, or another process is writing to it.
    EncoderError
        The device has too little memory for even one image.
    StoreError
        The store cannot be written. Rows stored before an error are kept.
    """
    encoder.space.require(store.snapshot().space, f"the store {store.folder}")
    encoder = prepare_views(folders, store, encoder, options)
    if options.part is not None:
        return _index_part(folders, store, encoder, options, progress)
    with store.writer("index", rows_per_shard=options.rows_per_shard) as writer:
        adopt_shards(writer, store.folder)
        return _LocalRun(folders, writer, store.folder, encoder, options, progress).run()


def prepare_views(folders: Folders, store: Store, encoder: Encoder, options: IndexOptions) -> Encoder:
    """Create the views that a run is to make, and return the encoder with them; see `create_views`."""
    names = views_of(store) if options.views is None else options.views

    def images(number: int) -> Iterable[ImageRef]:
        listed = accepted_images(folders, IndexReport(), options.limit, options.seed)
        return drawn_uniformly(listed, number, seed=0)

    create_views(store, encoder, names, images)
    return encoder_with_views(store, encoder, names)


def _index_part(
    folders: Folders, store: Store, encoder: Encoder, options: IndexOptions, progress: Progress | None
) -> IndexReport:
    """Index one of several parts; the store's lock is held only to commit, at the start and at the end."""
    commit(store)
    writer = StagedWriter(store, options.rows_per_shard)
    try:
        return _LocalRun(folders, writer, store.folder, encoder, options, progress).run()
    finally:
        writer.seal()
        commit(store, timeout=COMMIT_TIMEOUT)


class _LocalRun(IndexRun):
    """Run that reads and encodes the images in this process."""

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

    def run(self) -> IndexReport:
        """Run and return the report."""
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
            report.interrupted = not pipeline.run(batched(self.images_to_read(), report.batch_size), self._write)
            report.batch_size = pipeline.batch_size
            if not report.interrupted:
                self.finish()
        finally:
            report.decoder_unused = gpu_decoder.unused if gpu_decoder else ""
            self.update_quarantine()
            report.ended = True
            self.report_progress()
        return report

    def _text_vectors(self, categories: set[str]) -> dict[str, npt.NDArray[Any]]:
        return _text_vectors(categories, self.encoder, self._texts) if self.options.text else {}

    def _write(self, batch: EncodedBatch) -> None:
        texts = texts_of(batch, self.encoder, self._texts) if self.options.text else {}
        counts = AppendCounts()
        if batch.images:
            counts = self.sink.append(block_of(batch, self.encoder, texts, self.options.thumbnails))
        self.record([image.ref.key for image in batch.images], counts, batch.refused)


def texts_of(batch: EncodedBatch, encoder: Encoder, known: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Text vectors of the batch's categories; new ones are embedded and added to `known`."""
    return _text_vectors({image.ref.category for image in batch.images} - {""}, encoder, known)


def _text_vectors(
    categories: set[str], encoder: Encoder, known: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    if encoder.has_text and (new := sorted(categories - known.keys())):
        known.update(zip(new, encoder.encode_texts(new), strict=True))
    return {category: known[category] for category in categories & known.keys()}


def block_of(batch: EncodedBatch, encoder: Encoder, texts: dict[str, npt.NDArray[Any]], thumbnails: bool) -> Block:
    """Convert a batch to a block of the store."""
    small = tuple(image.thumbnail_jpeg() for image in batch.images) if thumbnails else ()
    named = encoder.split(batch.vectors)
    main = named.pop(MAIN)
    return Block(encoder.space, rows_of(batch.images), main, small, texts, dict(named))


def rows_of(images: Sequence[DecodedImage]) -> Rows:
    """Make rows of metadata, one per image."""
    return Rows(
        keys=np.array([i.ref.key for i in images], TEXT),
        labels=np.array([i.ref.label for i in images], np.int8),
        targets=np.array([i.ref.target for i in images], np.int16),
        sources=np.array([i.ref.source for i in images], TEXT),
        generators=np.array([i.ref.generator for i in images], TEXT),
        categories=np.array([i.ref.category for i in images], TEXT),
        paths=np.array([to_text(i.ref.path) for i in images], TEXT),
        digests=np.frombuffer(b"".join(i.image.digest for i in images), "V16"),
        bytes=np.array([i.image.size for i in images], np.int64),
        widths=np.array([i.width for i in images], np.int32),
        heights=np.array([i.height for i in images], np.int32),
        formats=np.array([i.image.format for i in images], TEXT),
        qualities=np.array([i.image.quality for i in images], np.int16),
        mtimes=np.array([i.time for i in images], np.int64),
    )
