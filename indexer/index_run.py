"""Bookkeeping of an indexing run: new, known, changed, unreadable and deleted images, wherever they are encoded."""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ImageError, SourceError
from ..store.records import TEXT, UNKNOWN, RowLabels, Vectors
from ..store.shard import ROWS_PER_SHARD
from ..store.writer import AppendCounts
from .decoding.image import digest_of
from .pipeline import batched
from .quarantine import NAME as QUARANTINE
from .quarantine import QuarantinedImage, read_quarantine, write_quarantine
from .report import IndexReport
from .sample import sampled
from .shard_inbox import Sink
from .sources.archives.tar_archive import TarArchive
from .sources.archives.zip_archive import ZipArchive
from .sources.base import Listed, Source, to_text
from .sources.cloud import CloudFolder
from .sources.folders import LINKS_OUT, FolderSource, expand, listing
from .sources.hash_set import HashSet
from .sources.image_ref import ImageRef, PassedOver
from .sources.stored_paths import file_exists, is_elsewhere

MIN_TRIED = 1000  # images read before the share of bad ones can end a run early
KEYS_PER_LOOKUP = 1024


@dataclass(frozen=True)
class IndexOptions:
    """Options of an indexing run."""

    batch_size: int | None = None  # None: `Encoder.batch_size`; halved when memory runs out
    threads: int = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 4, 32)
    text: bool = True  # embed the name of each category, if the encoder embeds text
    thumbnails: bool = True
    limit: int | None = None  # maximum number of images, drawn from every source and both classes
    seed: int = 0  # random seed of the draw
    max_bad: float = 1.0  # largest allowed share of bad images: 0.01 is 1 %
    retry_quarantined: bool = False  # read images again that could not be read before
    sync: bool = False  # delete rows of these sources whose file is gone; reread files whose size is unknown
    part: tuple[int, int] | None = None  # (i, n): only the i-th (from 0) of n equal parts, by key
    rows_per_shard: int = ROWS_PER_SHARD
    views: tuple[str, ...] | None = None  # further vectors of each image, see `views/`; None: those of the store
    decoder: str = "auto"  # decoder of large JPEGs: "cpu", "nvimagecodec", or "auto": the latter on a GPU if faster


Progress = Callable[[IndexReport], None]
Folders = Sequence[str | Path | Source]


class IndexRun:
    """Base of indexing runs: which images have to be read, and what became of them."""

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
        self._seen = np.zeros(len(self._before), bool)  # rows of `_before` whose image was listed
        self._relabelled = array("q")  # positions in `_before` of unchanged images whose labels were corrected
        self._new_labels: list[RowLabels] = []  # of each of them
        self._distinct_labels: dict[RowLabels, RowLabels] = {}  # equal labels are kept once
        self._bad = read_quarantine(folder)
        self._known_bad = dict(self._bad)
        self._began = time.monotonic()

    def finish(self) -> None:
        """Do the steps that need a complete run."""
        self._relabel()
        self._check_bad()
        if self.options.sync:
            self._delete_missing()

    def update_quarantine(self) -> None:
        """Write this run's changes to the quarantine list; other processes may have changed it meanwhile."""
        if self._bad != self._known_bad:
            repaired = self._known_bad.keys() - self._bad.keys()
            current = {key: bad for key, bad in read_quarantine(self.folder).items() if key not in repaired}
            write_quarantine(self.folder, current | self._bad)

    def images_to_read(self) -> Iterator[ImageRef]:
        """Iterate over the images that are neither stored unchanged nor known to be unreadable."""
        images = accepted_images(self.sources, self.report, self.options.limit, self.options.seed)
        if self.options.part is not None:
            part, parts = self.options.part
            images = (ref for ref in images if part_of(ref.key, parts) == part)
        for chunk in batched(images, KEYS_PER_LOOKUP):
            positions = self._before.find([ref.key for ref in chunk]) if len(self._before) else np.full(len(chunk), -1)
            unchanged: dict[int, ImageRef] = {}  # by position
            known = positions[positions >= 0]
            stored_paths = dict(zip(known.tolist(), self._before.paths(known), strict=True)) if len(known) else {}
            for ref, position in zip(chunk, positions.tolist(), strict=True):
                if position >= 0 and (clash := self._clash(ref, position, stored_paths[position])):
                    self._seen[position] = True
                    self.report.skipped.append((ref.key, clash))
                elif position >= 0 and self._is_unchanged(ref, position):
                    if self._seen[position]:
                        self.report.known += 1
                    else:
                        self._seen[position] = True
                        unchanged[position] = ref
                elif (bad := self._known_bad.get(ref.key)) and not self._should_retry(ref, bad):
                    self.report.skipped.append((ref.key, bad.reason))
                else:
                    yield ref
            yield from self._compare_labels(unchanged)

    def _clash(self, ref: ImageRef, position: int, stored_path: str) -> str:
        """Why an image cannot be stored under its key, "" if it can: the key is that of another file, still there."""
        path = to_text(ref.path)
        if path == stored_path or not is_elsewhere(path, stored_path):
            return ""
        try:
            content, _ = ref.byte_source.read()
        except ImageError:
            return ""  # reported when it is read
        if digest_of(content) == self._before.digests(np.array([position]))[0].tobytes():
            return ""
        return (
            f"{path} has the key of {stored_path}, which is another image; rename one of the two folders or archives "
            f"called {ref.key.partition('/')[0]}, or index the folder that holds both"
        )

    def _compare_labels(self, unchanged: dict[int, ImageRef]) -> Iterator[ImageRef]:
        """Note the stored images, by position, whose labels were corrected; yields those that must be read for it."""
        stored_labels = self._before.row_labels(np.fromiter(unchanged, np.int64, len(unchanged)))
        for (position, ref), stored in zip(unchanged.items(), stored_labels, strict=True):
            if ref.labels == stored:
                self.report.known += 1
                continue
            listed = RowLabels(*ref.labels)
            labels = stored.corrected(listed)
            if (stored.label != UNKNOWN == listed.label) or (stored.category and not listed.category):
                self.report.labels_kept += 1
            if labels == stored:
                self.report.known += 1
            elif self._needs_reading(labels):
                yield ref
            else:
                self._relabelled.append(position)
                self._new_labels.append(self._distinct_labels.setdefault(labels, labels))

    def _needs_reading(self, labels: RowLabels) -> bool:
        """Whether an unchanged image must be read to get these labels; see `_Driver`."""
        return False

    def _text_vectors(self, categories: set[str]) -> Mapping[str, Vectors]:
        """Text vectors of categories that were corrected, as far as they are new and can be embedded here."""
        return {}

    def _relabel(self) -> None:
        """Write the corrected labels; the images are not read."""
        positions = np.array(self._relabelled, np.int64)
        order = np.argsort(positions)
        texts = self._text_vectors({labels.category for labels in self._distinct_labels} - {""})
        for start in range(0, len(order), self.options.rows_per_shard):
            rows = order[start : start + self.options.rows_per_shard]
            labels = [self._new_labels[i] for i in rows.tolist()]
            self.report.relabelled += self.sink.relabel(self._before.ids[positions[rows]], labels, texts)
            self.report_progress()

    def _is_unchanged(self, ref: ImageRef, position: int) -> bool:
        try:
            size, time = ref.byte_source.stat()
        except ImageError:
            return False
        if size < 0:  # a URL of unknown size: a request for it would cost as much as reading the file
            return not self.options.sync
        before = self._before
        return bool(before.column("bytes")[position] == size and before.column("mtimes")[position] == time)

    def _should_retry(self, ref: ImageRef, bad: QuarantinedImage) -> bool:
        return self.options.retry_quarantined or _stat_or_missing(ref) != (bad.bytes, bad.time)

    def record(self, keys: list[str], counts: AppendCounts, refused: Sequence[tuple[ImageRef, str]]) -> None:
        """Count rows that were appended and images that could not be read."""
        report = self.report
        for ref, reason in refused:
            report.skipped.append((ref.key, reason))
            self._bad[ref.key] = QuarantinedImage(ref.key, to_text(ref.path), reason, *_stat_or_missing(ref))
        for key in keys:
            self._bad.pop(key, None)
        if keys and len(self._before):
            positions = self._before.find(keys)
            self._seen[positions[positions >= 0]] = True
        report.added += counts.added
        report.known += counts.known
        report.replaced += counts.replaced
        report.relabelled += counts.relabelled
        report.tried += len(keys) + len(refused)
        report.bad += len(refused)
        if report.tried >= MIN_TRIED:
            self._check_bad()
        self.report_progress()

    def report_progress(self) -> None:
        self.report.tick(time.monotonic() - self._began)
        if self._progress:
            self._progress(self.report)

    def _check_bad(self) -> None:
        """Raise SourceError if too many of the images read so far are bad."""
        report, share = self.report, self.options.max_bad
        if report.bad > share * report.tried:
            key, reason = report.skipped[-1]
            raise SourceError(
                f"{report.bad} of {report.tried} images could not be read, more than the {share:.2%} allowed "
                f"(the last: {key}: {reason}). The good images are stored and the bad ones are listed in "
                f"{self.folder / QUARANTINE}; check these, or raise --max-bad"
            )

    def _delete_missing(self) -> None:
        """Delete the rows of this run's sources whose image was not listed or could not be read.

        Rows whose image was listed with invalid metadata stay: it is the metadata that is to be corrected. So do those
        of another folder of the same name whose file is still there.
        """
        if self.options.limit is not None or self.options.part is not None:
            raise SourceError("sync needs the whole listing; omit the limit and the part")
        keys, paths = self._before.column("keys"), self._before.column("paths")
        of_sources, of_names = np.zeros(len(self._before), bool), np.zeros(len(self._before), bool)
        for source in self.sources:
            if isinstance(source, FolderSource | CloudFolder | ZipArchive | TarArchive):
                path = to_text(source.path)
                of_sources |= np.strings.startswith(paths, np.array(f"{path}/", TEXT))
                of_sources |= np.strings.endswith(paths, np.array(f"::{path}", TEXT))
            else:
                of_sources |= np.strings.startswith(keys, np.array(f"{source.name}/", TEXT))
        for root in {source.name for source in self.sources} | self.report.roots:
            of_names |= np.strings.startswith(keys, np.array(f"{root}/", TEXT))
        moved = np.flatnonzero(of_names & ~of_sources & ~self._seen)
        gone = [i for i, path in zip(moved.tolist(), paths[moved].tolist(), strict=True) if not file_exists(path)]
        of_sources[np.array(gone, np.int64)] = True
        refused = [key for key, _ in self.report.skipped if key not in self._bad]
        positions = self._before.find(refused) if refused else np.zeros(0, np.int64)
        self._seen[positions[positions >= 0]] = True
        missing = of_sources & ~self._seen
        if LINKS_OUT in self.report.passed_over:  # these images may be there, and were indexed with --follow-links
            positions = np.flatnonzero(missing)
            missing[positions] = [not file_exists(path) for path in paths[positions].tolist()]
        missing_keys = keys[missing]
        if len(missing_keys):
            self.sink.seal()
            positions = self.sink.snapshot.find(missing_keys)
            mask = np.zeros(len(self.sink.snapshot), bool)
            mask[positions[positions >= 0]] = True
            self.report.dropped = self.sink.delete(mask)


def part_of(key: str, parts: int) -> int:
    """Return which of `parts` equal parts a key belongs to; it depends on nothing but the key.

    >>> [part_of(key, 3) for key in ("a/6.jpg", "a/7.jpg", "a/9.jpg", "b/1.jpg")]
    [0, 1, 0, 0]
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % parts


def accepted_images(
    folders: Folders, report: IndexReport, limit: int | None = None, seed: int = 0
) -> Iterator[ImageRef]:
    """Iterate over the images that are not refused, and record everything listed in the report.

    Parameters
    ----------
    limit : maximum number of images, drawn at random from every source and both classes
    seed : random seed of the draw
    """
    images = _accepted(listing(folders), report, HashSet())
    for ref in images if limit is None else sampled(images, limit, seed):
        report.count_listed(ref)
        yield ref


def _accepted(listed: Iterable[Listed], report: IndexReport, keys: HashSet) -> Iterator[ImageRef]:
    for item in listed:
        if isinstance(item, PassedOver):
            report.add_passed_over(item)
        elif item.refused:
            report.skipped.append((item.key, item.refused))
        elif keys.contains_or_add(item.key):
            root = item.key.partition("/")[0]
            reason = f"{item.path} has the key of an image listed before; rename one of the two folders called {root}"
            report.skipped.append((item.key, reason))
        else:
            yield item


def _stat_or_missing(ref: ImageRef) -> tuple[int, int]:
    """Size and time of a file, -1 and -1 for a missing one."""
    try:
        return ref.byte_source.stat()
    except ImageError:
        return -1, -1
