"""Zip archives. The directory is at the end, so that the tables are known before the first image."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from zlib import crc32, decompressobj
from zlib import error as zlib_error

from ....errors import ImageError, SourceError
from ..base import LINKS, NOT_NAMED, Listed, PassedOverFiles, image_from_path, is_listed, missing
from ..file_names import HEAD_BYTES, FileKind, is_foreign_path, is_image_name
from ..hash_set import HashSet
from ..image_ref import ArchiveSpan, ByteSource, MissingFile, header_length, read_range
from ..table_images import images_from_table
from ..tables.columns import DEFAULT_COLUMNS, ColumnNames
from ..tables.reading import count_rows, is_metadata, metadata_tables
from ..urls import is_url
from .zip_directory import DEFLATED, STORED, ZipDirectory

READING = Lock()  # held while a zip's directory is read, so that concurrent counting and listing read it once
PIECE = 1 << 20  # bytes of a table that are unpacked at a time
LINK = MissingFile("cannot be read: it is a link to another member")
HELD_LIMIT = 1 << 30  # bytes of a table that is held in memory as a whole


@dataclass(frozen=True)
class ZipArchive:
    """Zip archive; its images are listed in the archive's order, by the metadata tables inside if there are any."""

    path: str  # or URL
    columns: ColumnNames = DEFAULT_COLUMNS
    labels: bool = True  # False: list every image without reading labels

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)[: -len(".zip")]

    @cached_property
    def _directory(self) -> ZipDirectory:
        return ZipDirectory(self.path)

    @cached_property
    def _tables(self) -> dict[str, list[str]]:
        """Folder -> names of the metadata tables that are read."""
        names: dict[str, list[str]] = {}
        for folder, _, name in (inside.rpartition("/") for inside in self._directory.tables if self.labels):
            if not is_foreign_path(folder):
                names.setdefault(folder, []).append(name)
        return {folder: metadata_tables(set(tables)) for folder, tables in names.items()}

    @cached_property
    def _stamp(self) -> int:
        return 0 if is_url(self.path) else Path(self.path).stat().st_mtime_ns

    def __reduce__(self) -> tuple[type[ZipArchive], tuple[str, ColumnNames, bool]]:
        return ZipArchive, (self.path, self.columns, self.labels)  # another process reads the directory itself

    def images(self) -> Iterator[Listed]:
        passed_over = PassedOverFiles()
        named: dict[str, HashSet] = {}  # folder with tables -> images that the tables in it and below name
        for inside, start, folder in self._files():
            above, _, name = inside.rpartition("/")
            if folder is not None and folder not in named:
                named[folder] = HashSet()
                for table in self._tables_below(folder):
                    yield from images_from_table(self, posixpath.dirname(table), table, named[folder])
            if is_foreign_path(above):
                passed_over.add(FileKind.foreign, f"{self.path}/{inside}")
            elif (folder is not None and inside in named[folder]) or is_metadata(name):
                continue
            elif is_listed(self, inside, name, passed_over):
                if folder is None:
                    path, location = self._locate(inside, start)
                    if location == LINK:
                        passed_over.add(LINKS, path)
                    else:
                        yield image_from_path(self, inside, path, location)
                else:
                    passed_over.add(NOT_NAMED, f"{self.path}/{inside}")
        yield from passed_over

    def _files(self) -> Iterator[tuple[str, int, str | None]]:
        """Iterate over the files: path, offset in the directory, and the topmost enclosing folder that has a table."""
        with READING:
            directory = self._directory
        table_folder = lru_cache(1024)(lambda folder: next((f for f in _downwards(folder) if f in self._tables), None))
        for inside, start in directory.files():
            yield inside, start, table_folder(inside.rpartition("/")[0]) if self._tables else None

    def _tables_below(self, folder: str) -> list[str]:
        """Paths of the tables in a folder and below, the topmost first."""
        below = [f for f in self._tables if f == folder or f.startswith(f"{folder}/") or not folder]
        return [posixpath.join(f, name) for f in sorted(below, key=_depth) for name in self._tables[f]]

    def count(self) -> int | None:
        if is_url(self.path):
            return None  # the directory would be fetched twice
        count = 0
        for inside, _, folder in self._files():
            if is_metadata(posixpath.basename(inside)) and folder is not None:
                with self.open(inside) as file:
                    count += count_rows(f"{self.path}/{inside}", file)
            elif folder is None:
                count += is_image_name(inside) and not is_foreign_path(inside)
        return count

    def exists(self, inside: str) -> bool:
        # `find` reads backslashes as slashes: a table's path would keep them, and its image be taken for another one
        return "\\" not in inside and self._directory.find(inside) is not None

    def leads_out(self, inside: str) -> bool:
        return False

    def head(self, inside: str) -> bytes:
        try:
            with self.open(inside) as file:
                return file.read(HEAD_BYTES)
        except (SourceError, OSError):
            return b""

    def locate(self, inside: str) -> tuple[str, ByteSource]:
        start = self._directory.find(inside)
        return missing(self.path, inside) if start is None else self._locate(inside, start)

    def _locate(self, inside: str, start: int) -> tuple[str, ByteSource]:
        member = self._directory.member(start)
        if member.is_link:
            return f"{self.path}/{inside}", LINK
        if member.encrypted or member.method not in (STORED, DEFLATED) or inside.startswith("../"):
            why = "encrypted" if member.encrypted else f"packed by method {member.method}"
            why = "outside of the archive" if inside.startswith("../") else why
            return f"{self.path}/{inside}", MissingFile(f"cannot be read in place: it is {why}")
        # The archive's times are whole seconds; the CRC is stored in place of the nanoseconds to reveal other changes.
        time = member.time + member.crc % 10**9
        return f"zip://{inside}::{self.path}", ArchiveSpan(
            self.path,
            self._stamp,
            member.offset,
            member.packed,
            member.size,
            time,
            zipped=True,
            deflated=member.method == DEFLATED,
            crc=member.crc,
        )

    def open(self, inside: str) -> BinaryIO:
        _, location = self.locate(inside)
        if not isinstance(location, ArchiveSpan):
            reason = location.reason if isinstance(location, MissingFile) else "cannot be read"
            raise SourceError(f"{self.path}/{inside}: {reason}")
        unpacked = io.BufferedReader(_Unpacked(location))
        if not inside.endswith(".parquet"):
            return unpacked
        if location.size > HELD_LIMIT:
            raise SourceError(
                f"{self.path}/{inside} has {location.size:,} bytes, too many to unpack in memory; unpack the archive"
            )
        try:
            return io.BytesIO(unpacked.read())  # reading parquet starts at its end
        except OSError as e:
            raise SourceError(f"{self.path}/{inside} is not a readable table: {e}") from e


class _Unpacked(io.RawIOBase):
    """Stream of an unpacked zip member; reading raises OSError if the member is damaged."""

    def __init__(self, span: ArchiveSpan) -> None:
        self._pieces, self._rest = _pieces(span), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _pieces(span: ArchiveSpan) -> Iterator[bytes]:
    """Content of a member, at most PIECE bytes at a time."""
    size = crc = 0
    try:
        for piece in _inflated(_packed(span)) if span.deflated else _packed(span):
            size, crc = size + len(piece), crc32(piece, crc)
            if size > span.size:
                break
            yield piece
    except (ImageError, zlib_error) as e:
        raise OSError(f"it cannot be unpacked: {e}") from e
    if (size, crc) != (span.size, span.crc):
        raise OSError("it does not unpack to the size and checksum in the archive's directory")


def _packed(span: ArchiveSpan) -> Iterator[bytes]:
    start = span.offset + header_length(read_range(span.archive, span.stamp, span.offset, 30), span.archive)
    end = start + span.packed
    while start < end and (piece := read_range(span.archive, span.stamp, start, min(PIECE, end - start))):
        start += len(piece)  # a truncated archive is detected by the size
        yield piece


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = decompressobj(-15)
    for data in packed:
        full = True  # a full piece may be followed by more output
        while data or full:
            piece = decompressor.decompress(data, PIECE)
            data, full = decompressor.unconsumed_tail, len(piece) == PIECE
            yield piece


def _downwards(folder: str) -> list[str]:
    """A folder and the folders above it, the topmost first.

    >>> _downwards("a/b")
    ['', 'a', 'a/b']
    """
    parts = folder.split("/")
    return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _depth(folder: str) -> tuple[int, str]:
    return folder.count("/") + bool(folder), folder
