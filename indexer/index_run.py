"""Run over some sources: new, known, changed, unreadable and vanished images, whoever encodes them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import ImageError, SourceError
from ..store.records import TEXT
from ..store.writer import ROWS_PER_SHARD, AppendCounts, Writer
from .pipeline import batched
from .quarantine import NAME as QUARANTINE
from .quarantine import QuarantinedImage, read_quarantine, write_quarantine
from .report import IndexReport
from .shard_inbox import Sink
from .sources.base import Source, text
from .sources.folders import expand, listing
from .sources.image_ref import ImageRef

TRIED_AT_LEAST = 1000  # images, before a share of bad ones ends a run early
CHUNK = 1024  # keys looked up at once


@dataclass(frozen=True)
class IndexOptions:
    """Options of an indexing run."""

    batch_size: int | None = None  # None: 64 on a CPU, 1024 on a GPU; halved when its memory runs out
    threads: int = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 4, 32)
    text: bool = True  # embed each distinct category, where the encoder can
    thumbnails: bool = True
    limit: int | None = None  # images at most
    max_bad: float = 1.0  # share of bad images that ends the run: 0.01 is 1 %
    retry_quarantined: bool = False  # try again what could not be read before
    sync: bool = False  # drop rows of these sources whose file is gone; read again what cannot be compared by time
    part: tuple[int, int] | None = None  # (i, n): only the i-th (from 0) of n equal parts, by key
    rows_per_shard: int = ROWS_PER_SHARD
    decoder: str = "auto"  # of large JPEGs: "cpu", "nvimagecodec", or the latter on a GPU where it pays


Progress = Callable[[IndexReport], None]
Folders = Sequence[str | Path | Source]


class IndexRun:
    """Bookkeeping of a run over some sources: what has to be read, and what became of it."""

    def __init__(
        self,
        folders: Folders,
        sink: Sink,
        folder: Path,
        options: IndexOptions,
        progress: Progress | None,
    ) -> None:
        self.sources = expand(folders)
        self.sink, self.folder, self.options = sink, folder, options
        self.report = IndexReport()
        self._progress = progress
        self._before = sink.snapshot
        self._seen = np.zeros(len(self._before), bool)  # which of its rows were met
        self._bad = read_quarantine(folder)
        self._known_bad = dict(self._bad)
        self._began = time.monotonic()

    def finish(self) -> None:
        """Do what is possible only after the last image."""
        self._check_bad()
        if self.options.sync:
            self._drop_gone()

    def note_bad(self) -> None:
        """Bring the quarantine list up to date; other processes may have written to it meanwhile."""
        if self._bad != self._known_bad:
            healed = self._known_bad.keys() - self._bad.keys()
            now = {key: bad for key, bad in read_quarantine(self.folder).items() if key not in healed}
            write_quarantine(self.folder, now | self._bad)

    def fresh(self) -> Iterator[ImageRef]:
        """Iterate over the images to read: neither stored unchanged nor known to be unreadable."""
        entries = accepted_images(islice(listing(self.sources), self.options.limit), self.report)
        if self.options.part is not None:
            part, parts = self.options.part
            entries = (entry for entry in entries if part_of(entry.key, parts) == part)
        for chunk in batched(entries, CHUNK):
            places = self._before.find([entry.key for entry in chunk]) if len(self._before) else np.full(len(chunk), -1)
            for entry, place in zip(chunk, places.tolist(), strict=True):
                if place >= 0 and self._stored_as_it_is(entry, place):
                    self._seen[place] = True
                    self.report.known += 1
                elif (bad := self._known_bad.get(entry.key)) and not self._worth_trying(entry, bad):
                    self.report.skipped.append((entry.key, bad.reason))
                else:
                    yield entry

    def _stored_as_it_is(self, entry: ImageRef, place: int) -> bool:
        try:
            size, when = entry.place.facts()
        except ImageError:
            return False
        if size < 0:  # a URL whose size nobody told: asking would cost as much as reading
            return not self.options.sync
        before = self._before
        return bool(before.column("bytes")[place] == size and before.column("mtimes")[place] == when)

    def _worth_trying(self, entry: ImageRef, bad: QuarantinedImage) -> bool:
        return self.options.retry_quarantined or _facts(entry) != (bad.bytes, bad.time)

    def settle(self, keys: list[str], counts: AppendCounts, refused: Sequence[tuple[ImageRef, str]]) -> None:
        """Count rows that were appended and images that could not be read."""
        report = self.report
        for entry, reason in refused:
            report.skipped.append((entry.key, reason))
            self._bad[entry.key] = QuarantinedImage(entry.key, text(entry.path), reason, *_facts(entry))
        for key in keys:
            self._bad.pop(key, None)
        if keys and len(self._before):
            places = self._before.find(keys)
            self._seen[places[places >= 0]] = True
        report.added += counts.added
        report.known += counts.known
        report.replaced += counts.replaced
        report.tried += len(keys) + len(refused)
        report.bad += len(refused)
        if report.tried >= TRIED_AT_LEAST:
            self._check_bad()
        self.report_progress()

    def report_progress(self) -> None:
        self.report.tick(time.monotonic() - self._began)
        if self._progress:
            self._progress(self.report)

    def _check_bad(self) -> None:
        """Raise SourceError where too many of the images that were read are bad."""
        report, share = self.report, self.options.max_bad
        if report.bad > share * report.tried:
            key, reason = report.skipped[-1]
            raise SourceError(
                f"{report.bad} of {report.tried} images could not be read, more than the {share:.2%} allowed "
                f"(the last: {key}: {reason}). The good ones are stored, the bad ones listed in "
                f"{self.folder / QUARANTINE}; look at these, or allow more"
            )

    def _drop_gone(self) -> None:
        """Delete the rows of this run's sources that the run did not meet: their files are gone or unreadable."""
        if self.options.limit is not None or self.options.part is not None:
            raise SourceError("sync needs the whole listing; leave out the limit and the part")
        keys, mine = self._before.column("keys"), np.zeros(len(self._before), bool)
        for root in {source.name for source in self.sources} | {s.split("/")[0] for s, _ in self.report.sources}:
            mine |= np.strings.startswith(keys, np.array(f"{root}/", TEXT))
        gone = keys[mine & ~self._seen]
        if len(gone) and isinstance(self.sink, Writer):
            self.sink.seal()
            places = self.sink.snapshot.find(gone)
            where = np.zeros(len(self.sink.snapshot), bool)
            where[places[places >= 0]] = True
            self.report.dropped = self.sink.delete(where)


def part_of(key: str, parts: int) -> int:
    """Return which of `parts` equal parts a key belongs to: the same on every machine, whatever else is listed.

    >>> [part_of(key, 3) for key in ("a/6.jpg", "a/7.jpg", "a/9.jpg", "b/1.jpg")]
    [0, 1, 0, 0]
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % parts


def accepted_images(entries: Iterable[ImageRef], report: IndexReport) -> Iterator[ImageRef]:
    """Entries that are not refused; the report takes note of all."""
    for entry in entries:
        if entry.refused:
            report.skipped.append((entry.key, entry.refused))
        else:
            report.listed_one(entry)
            yield entry


def _facts(entry: ImageRef) -> tuple[int, int]:
    """Size and time, -1 and -1 for what is not there."""
    try:
        return entry.place.facts()
    except ImageError:
        return -1, -1
