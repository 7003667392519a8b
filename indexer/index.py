"""The job: list folders, decode in threads, encode in batches, append to the store. Running it again does nothing."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..store.block import TEXT, Block, Rows
from ..store.errors import ImageError
from ..store.store import Store, Writer
from .encoder import Encoder
from .folders import Entry, listing
from .image import Image, decode, thumbnail

AHEAD = 3  # batches decoded before the encoder asks for them
LABELS = {0: "real", 1: "fake", -1: "unknown"}


@dataclass(frozen=True)
class IndexOptions:
    batch_size: int = 64
    threads: int = 4
    text: bool = True  # embed each distinct category, where the encoder can
    thumbnails: bool = True
    limit: int | None = None  # images at most


@dataclass
class IndexReport:
    """What an indexing run did; grows while it runs."""

    added: int = 0
    known: int = 0
    replaced: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, label) -> rows listed
    seconds: float = 0.0
    encoding_seconds: float = 0.0  # with the encoder at work
    waiting_seconds: float = 0.0  # for decoded images
    interrupted: bool = False

    @property
    def images_per_second(self) -> float:
        """Images encoded a second of the whole run."""
        return (self.added + self.replaced) / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "known": self.known,
            "replaced": self.replaced,
            "skipped": [{"key": key, "reason": reason} for key, reason in self.skipped],
            "sources": [
                {"source": source, "label": label, "rows": rows}
                for (source, label), rows in sorted(self.sources.items())
            ],
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.seconds, 3),
            "encoder_busy": round(self.encoding_seconds / self.seconds, 4) if self.seconds else 0.0,
            "interrupted": self.interrupted,
        }


Progress = Callable[[IndexReport], None]


def plan(folders: Sequence[Path], limit: int | None = None) -> IndexReport:
    """What would be indexed, without opening an image (`--dry-run`)."""
    report = IndexReport()
    for _ in _accepted(islice(listing(folders), limit), report):
        pass
    return report


def index(
    folders: Sequence[Path],
    store: Store,
    encoder: Encoder,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
) -> IndexReport:
    """Bring every image of these folders into the store; what is there already is left alone.

    One bad image is a row of the report's `skipped`. Ctrl-C finishes the batch in flight and seals it; the same call
    goes on from there.

    Raises
    ------
    SourceError, SpaceMismatch, StoreError
        What was stored stays.
    """
    encoder.space.require(store.snapshot().space, f"the store {store.folder}")
    report, texts = IndexReport(), dict(store.snapshot().texts)
    began = time.monotonic()
    with store.writer("index") as writer, ThreadPoolExecutor(options.threads) as pool:
        try:
            fresh = _unknown(_accepted(islice(listing(folders), options.limit), report), writer, report)
            for entries, images in _decoded(fresh, pool, options, report):
                if not entries:
                    continue
                started = time.monotonic()
                vectors = encoder.encode([image.pixels for image, _, _ in images])
                if options.text and encoder.has_text:
                    new = sorted({e.category for e in entries} - texts.keys() - {""})
                    texts.update(zip(new, encoder.encode_texts(new) if new else (), strict=True))
                report.encoding_seconds += time.monotonic() - started
                small = tuple(picture for _, _, picture in images) if options.thumbnails else ()
                here = {c: texts[c] for c in {e.category for e in entries} & texts.keys()}
                told = writer.append(Block(encoder.space, _rows(entries, images), vectors, small, here))
                report.added += told.added
                report.known += told.known
                report.replaced += told.replaced
                report.seconds = time.monotonic() - began
                if progress:
                    progress(report)
        except KeyboardInterrupt:
            report.interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
    report.seconds = time.monotonic() - began
    return report


def embed(encoder: Encoder, paths: Iterable[Path]) -> Iterator[tuple[Path, Image | ImageError, Any]]:
    """Each file with its image and its (dim,) vector, or with the ImageError that says why there is none."""
    for path in paths:
        try:
            image = decode(_read(path))
        except ImageError as e:
            yield path, e, None
        else:
            yield path, image, encoder.encode([image.pixels])[0]


def _accepted(entries: Iterable[Entry], report: IndexReport) -> Iterator[Entry]:
    for entry in entries:
        if entry.refused:
            report.skipped.append((entry.key, entry.refused))
        else:
            report.sources[entry.source, LABELS[entry.label]] += 1
            yield entry


def _unknown(entries: Iterable[Entry], writer: Writer, report: IndexReport) -> Iterator[Entry]:
    """Those whose key, size and time are not stored yet; files that look the same are not read again."""
    before = writer.snapshot
    entries = iter(entries)
    while chunk := list(islice(entries, 1024)):
        places = before.find([entry.key for entry in chunk]) if len(before) else np.full(len(chunk), -1)
        for entry, place in zip(chunk, places.tolist(), strict=True):
            if place >= 0 and _same_file(entry, before, place):
                report.known += 1
            else:
                yield entry


def _same_file(entry: Entry, before: Any, place: int) -> bool:
    try:
        status = Path(entry.path).stat()
    except OSError:
        return False
    return bool(
        before.column("bytes")[place] == status.st_size and before.column("mtimes")[place] == status.st_mtime_ns
    )


Decoded = tuple[Image, int, bytes]  # with the file's time and its thumbnail


def _decoded(
    entries: Iterable[Entry], pool: ThreadPoolExecutor, options: IndexOptions, report: IndexReport
) -> Iterator[tuple[list[Entry], list[Decoded]]]:
    """Batches of decoded images, a few ahead of the one who asks; what cannot be decoded goes to the report."""
    entries = iter(entries)
    ahead: deque[list[tuple[Entry, Future[Decoded]]]] = deque()
    while True:
        while len(ahead) < AHEAD and (batch := list(islice(entries, options.batch_size))):
            ahead.append([(entry, pool.submit(_open, entry, options.thumbnails)) for entry in batch])
        if not ahead:
            return
        good: list[Entry] = []
        images: list[Decoded] = []
        started = time.monotonic()
        for entry, future in ahead.popleft():
            try:
                images.append(future.result())
                good.append(entry)
            except ImageError as e:
                report.skipped.append((entry.key, str(e)))
        report.waiting_seconds += time.monotonic() - started
        yield good, images


def _open(entry: Entry, small: bool) -> Decoded:
    path = Path(entry.path)
    image = decode(_read(path))
    return image, path.stat().st_mtime_ns, thumbnail(image.pixels) if small else b""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ImageError(f"cannot be read: {e.strerror}") from e


def _rows(entries: Sequence[Entry], images: Sequence[Decoded]) -> Rows:
    return Rows(
        keys=np.array([e.key for e in entries], TEXT),
        labels=np.array([e.label for e in entries], np.int8),
        targets=np.array([e.target for e in entries], np.int16),
        sources=np.array([e.source for e in entries], TEXT),
        generators=np.array([e.generator for e in entries], TEXT),
        categories=np.array([e.category for e in entries], TEXT),
        paths=np.array([e.path.encode("utf-8", "replace").decode() for e in entries], TEXT),
        digests=np.frombuffer(b"".join(i.digest for i, _, _ in images), "V16"),
        bytes=np.array([i.size for i, _, _ in images], np.int64),
        widths=np.array([i.width for i, _, _ in images], np.int32),
        heights=np.array([i.height for i, _, _ in images], np.int32),
        formats=np.array([i.format for i, _, _ in images], TEXT),
        qualities=np.array([i.quality for i, _, _ in images], np.int16),
        mtimes=np.array([mtime for _, mtime, _ in images], np.int64),
    )
