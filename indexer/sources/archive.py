"""Zip and tar archives, read in place without unpacking them to disk.

The directory of a zip is at its end, so its tables are known before its first image. A tar is read once from start to
end, so the metadata of an image must be beside it (WebDataset: one name, several suffixes) or, in a metadata table,
before it.
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
from .base import SUFFIXES, image_from_path, images_from_table, is_image, labels_of_folder, missing, to_text
from .cloud import open_binary
from .image_ref import (
    ArchiveSpan,
    ByteSource,
    ImageRef,
    InMemory,
    MissingFile,
    header_length,
    is_url,
    read_range,
    too_large,
)
from .labels import label_from_row
from .zip_directory import DEFLATED, STORED, ZipDirectory

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
SIDECARS = (".json", ".cls", ".txt")
READING = Lock()  # held while a zip's directory is read, so that concurrent counting and listing read it once
PIECE = 1 << 20  # bytes of a table that are unpacked at a time
HELD_LIMIT = 1 << 30  # bytes held in memory: a table that is read as a whole, or a tar's files of one name


@dataclass(frozen=True)
class ZipArchive:
    """Zip archive; its images are listed in the archive's order, by the metadata tables inside if there are any."""

    path: str  # or URL

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)[: -len(".zip")]

    @cached_property
    def _directory(self) -> ZipDirectory:
        return ZipDirectory(self.path)

    @cached_property
    def _tables(self) -> dict[str, str]:
        """Folder -> its metadata table."""
        names: dict[str, str] = {}
        for folder, _, name in (inside.rpartition("/") for inside in self._directory.tables):
            names[folder] = min(name, names.get(folder, name), key=tables.METADATA.index)
        return names

    @cached_property
    def _stamp(self) -> int:
        return 0 if is_url(self.path) else Path(self.path).stat().st_mtime_ns

    def __reduce__(self) -> tuple[type[ZipArchive], tuple[str]]:
        return ZipArchive, (self.path,)  # another process reads the directory itself

    def images(self) -> Iterator[ImageRef]:
        seen_folders = set[str]()
        for inside, start, folder in self._files():
            if folder is not None:
                if folder not in seen_folders:
                    seen_folders.add(folder)
                    yield from images_from_table(self, folder, posixpath.join(folder, self._tables[folder]))
            elif is_image(inside):
                yield image_from_path(self.name, inside, *self._locate(inside, start))

    def _files(self) -> Iterator[tuple[str, int, str | None]]:
        """Iterate over the files: path, offset in the directory, and the topmost enclosing folder that has a table."""
        table_folder = lru_cache(1024)(lambda folder: next((f for f in _downwards(folder) if f in self._tables), None))
        with READING:
            directory = self._directory
        for inside, start in directory.files():
            yield inside, start, table_folder(inside.rpartition("/")[0]) if self._tables else None

    def count(self) -> int | None:
        if is_url(self.path):
            return None  # the directory would be fetched twice
        seen_folders = set[str]()
        count = 0
        for inside, _, folder in self._files():
            if folder is None:
                count += is_image(inside)
            elif folder not in seen_folders:
                seen_folders.add(folder)
                name = posixpath.join(folder, self._tables[folder])
                with self.open(name) as file:
                    count += tables.count(f"{self.path}/{name}", file)
        return count

    def locate(self, inside: str) -> tuple[str, ByteSource]:
        start = self._directory.find(inside)
        return missing(self.path, inside) if start is None else self._locate(inside, start)

    def _locate(self, inside: str, start: int) -> tuple[str, ByteSource]:
        member = self._directory.member(start)
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


@dataclass(frozen=True)
class TarArchive:
    """Tar archive, listed as a stream: a WebDataset shard, or any folder packed into one file.

    The images of a local, uncompressed tar are read later, from any thread; those of others are held in memory while
    the archive is listed.
    """

    path: str  # or URL

    @cached_property
    def name(self) -> str:
        base = posixpath.basename(self.path)
        return next(base[: -len(end)] for end in sorted(TARS, key=len, reverse=True) if base.lower().endswith(end))

    def images(self) -> Iterator[ImageRef]:
        in_place = self.path.lower().endswith(".tar") and not is_url(self.path)
        stamp = Path(self.path).stat().st_mtime_ns if in_place else 0
        try:
            with (
                open_binary(self.path) as file,
                tarfile.open(fileobj=file, mode="r:" if in_place else "r|*", tarinfo=_Header) as archive,
            ):
                members = self._members(archive, stamp if in_place else None)
                rows_by_folder: dict[str, dict[str, dict[str, Any]]] = {}  # folder -> image_path -> row
                passed: set[str] = set()  # folders whose images were listed
                for stem, group in groupby(members, key=lambda member: _stem(member[0])):
                    yield from self._sample(stem, self._held(stem, group), rows_by_folder, passed)
        except ClipfakeError:
            raise
        except Exception as e:  # a damaged archive can make tarfile raise almost anything
            raise SourceError(f"{self.path} is not a readable tar archive ({e}); download it again") from e

    def _members(self, archive: tarfile.TarFile, stamp: int | None) -> Iterator[tuple[str, ByteSource | bytes]]:
        """Iterate over names, with the location of an image or the content of a sidecar or metadata table."""
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps all of them
            name = posixpath.normpath(member.name)
            suffix = posixpath.splitext(name)[1].lower()
            if not member.isreg():
                continue
            if (suffix in SIDECARS and member.size <= PIECE) or posixpath.basename(name) in tables.METADATA:
                if member.size > HELD_LIMIT:
                    raise SourceError(f"{self.path} holds {name} with {member.size:,} bytes, too many for a table")
                file = archive.extractfile(member)
                yield name, file.read() if file else b""
            elif suffix in SUFFIXES:
                time = _nanoseconds(member.mtime)
                if why := "it is sparse" if member.issparse() else too_large(member.size):
                    yield name, MissingFile(why)
                elif stamp is not None:
                    yield name, ArchiveSpan(self.path, stamp, member.offset_data, member.size, member.size, time)
                else:
                    file = archive.extractfile(member)
                    yield name, InMemory(file.read() if file else b"", time)

    def _held(self, stem: str, group: Iterable[tuple[str, ByteSource | bytes]]) -> list[tuple[str, ByteSource | bytes]]:
        """Collect the files of one name; raises SourceError if they are too large to hold in memory."""
        files, size = [], 0
        for name, content in group:
            held = content.content if isinstance(content, InMemory) else content
            size += len(held) if isinstance(held, bytes) else 0
            if size > HELD_LIMIT:
                raise SourceError(
                    f"{self.path} holds over {HELD_LIMIT:,} bytes named {stem}; unpack it, and name the folder"
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
        """Iterate over the images of one name, with the metadata of the files beside them."""
        sidecar: dict[str, Any] = {}
        for name, content in group:
            if not isinstance(content, bytes):
                continue
            if posixpath.basename(name) in tables.METADATA:
                folder = posixpath.dirname(name)
                if any(f"{before}/".startswith(f"{folder}/" if folder else "") for before in passed):
                    raise SourceError(
                        f"{self.path} holds {name} after images that it describes, and a tar is read only once; "
                        f"pack the table first, or use a zip or a folder"
                    )
                rows_by_folder[folder] = self._table(name, content)
            else:
                sidecar |= _parse_sidecar(posixpath.splitext(name)[1].lower(), content)
        for name, content in group:
            if isinstance(content, bytes):
                continue
            passed.add(posixpath.dirname(name))
            yield self._image(name, content, sidecar, rows_by_folder)

    def _image(
        self,
        name: str,
        location: ByteSource,
        sidecar: dict[str, Any],
        rows_by_folder: dict[str, dict[str, dict[str, Any]]],
    ) -> ImageRef:
        folder = next((above for above in _above(name) if above in rows_by_folder), None) if rows_by_folder else None
        inside = name if not folder else name[len(folder) + 1 :]
        not_listed = {"target": "none: not in the table"}
        row = sidecar if folder is None else {**rows_by_folder[folder].get(inside, not_listed)}
        label, source, generator = labels_of_folder(self.name, name.rpartition("/")[0])
        key, target = to_text(f"{self.name}/{name}"), -1
        if folder is not None and "image_path" in row:  # the same keys as of the unpacked archive
            source = to_text(posixpath.basename(folder) or self.name)
            key, generator = f"{source}/{to_text(inside)}", source
        path = f"tar://{name}::{self.path}"
        label_or_reason = label_from_row(row)
        if isinstance(label_or_reason, str):
            return ImageRef(key, path, source=source, refused=f"{path}: {label_or_reason}")
        if label_or_reason is not None:
            label, target = label_or_reason
        generator = (
            (to_text(str(row.get("generator") or "")) or generator or to_text(self.name)) if label == FAKE else ""
        )
        category = to_text(str(row.get("category") or "").strip())
        return ImageRef(key, path, label, target, source, generator, category, "", location)

    def _table(self, name: str, content: bytes) -> dict[str, dict[str, Any]]:
        with closing(tables.rows(f"{self.path}/{name}", io.BytesIO(content))) as rows:
            column = tables.path_column(list(next(rows)[1]), f"{self.path}/{name}", target=True)
            return {posixpath.normpath(str(row[column])): row for _, row in rows}


class _Header(tarfile.TarInfo):
    """Tar header; of a regular file only name, size and time are parsed, as the rest takes longer.

    A damaged header raises an error, where tarfile would treat it as the end of the archive and silently skip the rest.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        name, nul, _ = bytes(buf[:100]).partition(b"\0")
        if buf[156:157] == b"0" and nul and len(buf) == tarfile.BLOCKSIZE and not buf[345]:  # the name has no prefix
            try:
                size, time, checksum = (
                    int(buf[a:b].rstrip(b"\0 "), 8) for a, b in ((124, 136), (136, 148), (148, 156))
                )
                if checksum == sum(buf) - sum(buf[148:156]) + 8 * 32 and min(size, time) >= 0:
                    header = cls(name.decode(encoding, errors))
                    header.size, header.mtime, header.type = size, time, tarfile.REGTYPE
                    return header
            except ValueError:
                pass  # numbers in another format
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as e:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is damaged: {e}") from e
        if header.type in EXTENDED_HEADERS and header.size > PIECE:  # tarfile reads it as a whole
            raise tarfile.ReadError(f"an extended header of {header.size:,} bytes")
        return header

    def _block(self, count: int) -> int:
        """Round bytes up to whole blocks; refuse negative sizes, which would lead back and never end."""
        if count < 0:
            raise tarfile.ReadError(f"a file of {count} bytes")
        return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _nanoseconds(seconds: float) -> int:
    """Time of a tar member in nanoseconds, 0 if it is invalid."""
    return int(seconds * 10**9) if abs(seconds) < 1 << 33 else 0  # the store's range; False for NaN


def _stem(name: str) -> str:
    """Key of a WebDataset sample: the path up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _above(name: str) -> Iterator[str]:
    while name:
        name = posixpath.dirname(name)
        yield name


def _parse_sidecar(suffix: str, content: bytes) -> dict[str, Any]:
    """Parse a sidecar file: the fields of a JSON object, a class code (0 is real), or a label word.

    >>> _parse_sidecar(".cls", b"1"), _parse_sidecar(".txt", b"real"), _parse_sidecar(".txt", b"a cat on a mat")
    ({'target': '1'}, {'label': 'real'}, {})
    """
    text = content.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return {"target": text}
    if suffix == ".json":
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}
    return {"label": text} if isinstance(label_from_row({"label": text}), tuple) and text else {}
