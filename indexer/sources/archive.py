"""Zip and tar archives, read in place: nothing is unpacked.

A zip says at its end what it holds, so its tables are known before its first image. A tar is read once from start to
end, so whatever speaks of an image must lie beside it (WebDataset: one name, several suffixes) or, for a metadata
table, before it.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Self
from zlib import crc32, decompressobj
from zlib import error as zlib_error

from ...errors import ClipfakeError, ImageError, SourceError
from ...store.records import FAKE
from . import tables
from .base import SUFFIXES, by_folder, by_name, by_table, is_image, missing, text
from .cloud import open_binary
from .image_ref import (
    ArchiveSpan,
    ByteSource,
    ImageRef,
    InMemory,
    MissingFile,
    giant,
    header_length,
    is_url,
    read_range,
)
from .labels import by_row
from .zip_directory import DEFLATED, STORED, ZipDirectory

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
WORDY = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
SIDECARS = (".json", ".cls", ".txt")
READING = Lock()  # held while a zip's directory is read: who counts and who lists at the same time share one
PIECE = 1 << 20  # bytes of a table that are unpacked at once
HELD_LIMIT = 1 << 30  # bytes of a table that is read as a whole, or of a tar's images of one name


@dataclass(frozen=True)
class ZipArchive:
    """A zip archive: its images in its own order, by the tables inside where these speak of them."""

    at: str

    @property
    def name(self) -> str:
        return posixpath.basename(self.at)[: -len(".zip")]

    @cached_property
    def _directory(self) -> ZipDirectory:
        return ZipDirectory(self.at)

    @cached_property
    def _tables(self) -> dict[str, str]:
        """Folder -> its metadata table."""
        found: dict[str, str] = {}
        for folder, _, name in (inside.rpartition("/") for inside in self._directory.tables):
            found[folder] = min(name, found.get(folder, name), key=tables.METADATA.index)
        return found

    @cached_property
    def _stamp(self) -> int:
        return 0 if is_url(self.at) else Path(self.at).stat().st_mtime_ns

    def __reduce__(self) -> tuple[type[ZipArchive], tuple[str]]:
        return ZipArchive, (self.at,)  # another process reads the directory for itself

    def entries(self) -> Iterator[ImageRef]:
        seen_folders = set[str]()
        for inside, start, folder in self._files():
            if folder is not None:
                if folder not in seen_folders:
                    seen_folders.add(folder)
                    yield from by_table(self, folder, posixpath.join(folder, self._tables[folder]))
            elif is_image(inside):
                yield by_name(self.name, inside, *self._placed(inside, start))

    def _files(self) -> Iterator[tuple[str, int, str | None]]:
        """Iterate over the files: path, place in the directory, and the topmost enclosing folder that has a table."""
        speaking = lru_cache(1024)(lambda folder: next((f for f in _downwards(folder) if f in self._tables), None))
        with READING:
            directory = self._directory
        for inside, start in directory.files():
            yield inside, start, speaking(inside.rpartition("/")[0]) if self._tables else None

    def count(self) -> int | None:
        if is_url(self.at):
            return None  # it would be fetched twice
        seen_folders = set[str]()
        count = 0
        for inside, _, folder in self._files():
            if folder is None:
                count += is_image(inside)
            elif folder not in seen_folders:
                seen_folders.add(folder)
                name = posixpath.join(folder, self._tables[folder])
                with self.open(name) as file:
                    count += tables.count(f"{self.at}/{name}", file)
        return count

    def place(self, inside: str) -> tuple[str, ByteSource]:
        start = self._directory.find(inside)
        return missing(self.at, inside) if start is None else self._placed(inside, start)

    def _placed(self, inside: str, start: int) -> tuple[str, ByteSource]:
        member = self._directory.member(start)
        if member.encrypted or member.method not in (STORED, DEFLATED) or inside.startswith("../"):
            how = "encrypted" if member.encrypted else f"packed by method {member.method}"
            how = "outside of the archive" if inside.startswith("../") else how
            return missing(self.at, f"{inside} that can be read in place: it is {how}")
        # The archive's times are whole seconds; the CRC in place of the nanoseconds shows a change they would hide.
        time = member.time + member.crc % 10**9
        return f"zip://{inside}::{self.at}", ArchiveSpan(
            self.at,
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
        _, place = self.place(inside)
        if not isinstance(place, ArchiveSpan):
            raise SourceError(
                f"{self.at}/{inside} cannot be read: {place.reason if isinstance(place, MissingFile) else ''}"
            )
        unpacked = io.BufferedReader(_Unpacked(place))
        if not inside.endswith(".parquet"):
            return unpacked
        if place.size > HELD_LIMIT:
            raise SourceError(f"{self.at}/{inside} is of {place.size:,} bytes, too large to unpack; unpack the archive")
        try:
            return io.BytesIO(unpacked.read())  # parquet is read from its end
        except OSError as e:
            raise SourceError(f"{self.at}/{inside} is not a readable table: {e}") from e


class _Unpacked(io.RawIOBase):
    """A member of a zip, unpacked as it is read; raises OSError where it is damaged."""

    def __init__(self, place: ArchiveSpan) -> None:
        self._pieces, self._left = _pieces(place), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._left = piece
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _pieces(place: ArchiveSpan) -> Iterator[bytes]:
    """A member's content, at most PIECE bytes at a time."""
    size = crc = 0
    try:
        for piece in _inflated(_packed(place)) if place.deflated else _packed(place):
            size, crc = size + len(piece), crc32(piece, crc)
            if size > place.size:
                break
            yield piece
    except (ImageError, zlib_error) as e:
        raise OSError(f"it cannot be unpacked: {e}") from e
    if (size, crc) != (place.size, place.crc):
        raise OSError("it does not unpack to the size and checksum that the archive promises")


def _packed(place: ArchiveSpan) -> Iterator[bytes]:
    start = place.offset + header_length(read_range(place.archive, place.stamp, place.offset, 30), place.archive)
    end = start + place.packed
    while start < end and (piece := read_range(place.archive, place.stamp, start, min(PIECE, end - start))):
        start += len(piece)  # where the archive ends before it says so, the size tells
        yield piece


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    unpacking = decompressobj(-15)
    for left in packed:
        full = True  # there may be more to come than was asked for
        while left or full:
            piece = unpacking.decompress(left, PIECE)
            left, full = unpacking.unconsumed_tail, len(piece) == PIECE
            yield piece


def _downwards(folder: str) -> list[str]:
    """A folder and those above it, the uppermost first.

    >>> _downwards("a/b")
    ['', 'a', 'a/b']
    """
    parts = folder.split("/")
    return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]


@dataclass(frozen=True)
class TarArchive:
    """A tar archive as a stream: WebDataset's shards, or any tree packed in one file.

    Where the file can be sought in (a local one that is not packed) images are read later, from any thread;
    otherwise they are held as they come by.
    """

    at: str

    @cached_property
    def name(self) -> str:
        base = posixpath.basename(self.at)
        return next(base[: -len(end)] for end in sorted(TARS, key=len, reverse=True) if base.lower().endswith(end))

    def entries(self) -> Iterator[ImageRef]:
        in_place = self.at.lower().endswith(".tar") and not is_url(self.at)
        stamp = Path(self.at).stat().st_mtime_ns if in_place else 0
        try:
            with (
                open_binary(self.at) as file,
                tarfile.open(fileobj=file, mode="r:" if in_place else "r|*", tarinfo=_Header) as archive,
            ):
                members = self._members(archive, stamp if in_place else None)
                rows_by_folder: dict[str, dict[str, dict[str, Any]]] = {}  # folder -> image_path -> row
                passed: set[str] = set()  # folders whose images were listed
                for stem, group in groupby(members, key=lambda found: _stem(found[0])):
                    yield from self._sample(stem, self._held(stem, group), rows_by_folder, passed)
        except ClipfakeError:
            raise
        except Exception as e:  # tarfile raises whatever damage makes of its arithmetic
            raise SourceError(f"{self.at} is not a readable tar archive ({e}); fetch it again") from e

    def _members(self, archive: tarfile.TarFile, stamp: int | None) -> Iterator[tuple[str, ByteSource | bytes]]:
        """Name and place of every image, name and content of whatever speaks of images."""
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all otherwise
            name = posixpath.normpath(member.name)
            suffix = posixpath.splitext(name)[1].lower()
            if not member.isreg():
                continue
            if (suffix in SIDECARS and member.size <= PIECE) or posixpath.basename(name) in tables.METADATA:
                if member.size > HELD_LIMIT:
                    raise SourceError(f"{self.at} holds {name} of {member.size:,} bytes, too large for a table")
                file = archive.extractfile(member)
                yield name, file.read() if file else b""
            elif suffix in SUFFIXES:
                time = _nanoseconds(member.mtime)
                if why := "it is sparse" if member.issparse() else giant(member.size):
                    yield name, MissingFile(why)
                elif stamp is not None:
                    yield name, ArchiveSpan(self.at, stamp, member.offset_data, member.size, member.size, time)
                else:
                    file = archive.extractfile(member)
                    yield name, InMemory(file.read() if file else b"", time)

    def _held(self, stem: str, group: Iterable[tuple[str, ByteSource | bytes]]) -> list[tuple[str, ByteSource | bytes]]:
        """The files of one name, together; raises SourceError where they would fill the memory."""
        files, size = [], 0
        for name, content in group:
            held = content.content if isinstance(content, InMemory) else content
            size += len(held) if isinstance(held, bytes) else 0
            if size > HELD_LIMIT:
                raise SourceError(
                    f"{self.at} holds over {HELD_LIMIT:,} bytes named {stem}; unpack it, and name the folder"
                )
            files.append((name, content))
        return files

    def _sample(
        self,
        stem: str,
        group: list[tuple[str, ByteSource | bytes]],
        rows_by_folder: dict[str, dict[str, dict[str, Any]]],
        passed: set[str],
    ) -> Iterator[ImageRef]:
        """The images of one name, with what the files beside them say."""
        beside: dict[str, Any] = {}
        for name, content in group:
            if not isinstance(content, bytes):
                continue
            if posixpath.basename(name) in tables.METADATA:
                folder = posixpath.dirname(name)
                if any(f"{before}/".startswith(f"{folder}/" if folder else "") for before in passed):
                    raise SourceError(
                        f"{self.at} holds {name} after images it speaks of, and a tar is read once; "
                        f"pack the table first, or use a zip or a folder"
                    )
                rows_by_folder[folder] = self._table(name, content)
            else:
                beside |= _said(posixpath.splitext(name)[1].lower(), content)
        for name, content in group:
            if isinstance(content, bytes):
                continue
            passed.add(posixpath.dirname(name))
            yield self._entry(name, content, beside, rows_by_folder)

    def _entry(
        self, name: str, place: ByteSource, beside: dict[str, Any], rows_by_folder: dict[str, dict[str, dict[str, Any]]]
    ) -> ImageRef:
        folder = next((above for above in _above(name) if above in rows_by_folder), None) if rows_by_folder else None
        inside = name if not folder else name[len(folder) + 1 :]
        row = beside if folder is None else {**rows_by_folder[folder].get(inside, {"target": "none: not in the table"})}
        label, source, generator = by_folder(self.name, name.rpartition("/")[0])
        key, target = text(f"{self.name}/{name}"), -1
        if folder is not None and "image_path" in row:  # as if it were unpacked: the same keys
            source = text(posixpath.basename(folder) or self.name)
            key, generator = f"{source}/{text(inside)}", source
        path = f"tar://{name}::{self.at}"
        label_or_reason = by_row(row)
        if isinstance(label_or_reason, str):
            return ImageRef(key, path, source=source, refused=f"{path}: {label_or_reason}")
        if label_or_reason is not None:
            label, target = label_or_reason
        generator = (text(str(row.get("generator") or "")) or generator or text(self.name)) if label == FAKE else ""
        return ImageRef(
            key, path, label, target, source, generator, text(str(row.get("category") or "").strip()), "", place
        )

    def _table(self, name: str, content: bytes) -> dict[str, dict[str, Any]]:
        with closing(tables.rows(f"{self.at}/{name}", io.BytesIO(content))) as rows:
            column = tables.path_column(list(next(rows)[1]), f"{self.at}/{name}", target=True)
            return {posixpath.normpath(str(row[column])): row for _, row in rows}


class _Header(tarfile.TarInfo):
    """A tar's header read for its name, size and time alone where it is a plain file's: the rest takes longer.

    tarfile takes one that makes no sense for the end of the archive, and all that follows would be missing unsaid.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        name, nul, _ = bytes(buf[:100]).partition(b"\0")
        if buf[156:157] == b"0" and nul and len(buf) == tarfile.BLOCKSIZE and not buf[345]:  # no prefix to the name
            try:
                size, time, checksum = (
                    int(buf[a:b].rstrip(b"\0 "), 8) for a, b in ((124, 136), (136, 148), (148, 156))
                )
                if checksum == sum(buf) - sum(buf[148:156]) + 8 * 32 and min(size, time) >= 0:
                    found = cls(name.decode(encoding, errors))
                    found.size, found.mtime, found.type = size, time, tarfile.REGTYPE
                    return found
            except ValueError:
                pass  # numbers of another kind
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as e:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is damaged: {e}") from e
        if header.type in WORDY and header.size > PIECE:  # tarfile reads it as a whole
            raise tarfile.ReadError(f"a name or other words of {header.size:,} bytes")
        return header

    def _block(self, count: int) -> int:
        """Bytes rounded up to whole blocks; a size below 0 would lead back to what was read, without an end."""
        if count < 0:
            raise tarfile.ReadError(f"a file of {count} bytes")
        return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _nanoseconds(seconds: float) -> int:
    """A tar's time, 0 for what is none."""
    return int(seconds * 10**9) if abs(seconds) < 1 << 33 else 0  # as much as the store keeps; not for NaN


def _stem(name: str) -> str:
    """WebDataset's key: the name up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _above(name: str) -> Iterator[str]:
    while name:
        name = posixpath.dirname(name)
        yield name


def _said(suffix: str, content: bytes) -> dict[str, Any]:
    """Parse a sidecar file: a JSON object's fields, a class code (0 is real), or a label word.

    >>> _said(".cls", b"1"), _said(".txt", b"real"), _said(".txt", b"a cat on a mat")
    ({'target': '1'}, {'label': 'real'}, {})
    """
    text = content.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return {"target": text}
    if suffix == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
    return {"label": text} if isinstance(by_row({"label": text}), tuple) and text else {}
