"""Reference to an image to index: its key, its metadata, and the location of its bytes."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol
from zlib import crc32, decompressobj
from zlib import error as zlib_error

from ...core.reading import open_regular, read_up_to
from ...errors import ImageError
from ...store.records import UNKNOWN
from .urls import is_url, read_url, unreadable

BYTES_LIMIT = 1 << 28  # 256 MiB: no known image file is larger, but a zip bomb is
LINK_LEADS_OUT = "it is a link that leads out of its folder; --follow-links follows it"
HEADER = 512  # bytes; a zip's local header (30 bytes, path, extra field) is seldom longer


class ByteSource(Protocol):
    """Interface of a location from which an image is read. Small and picklable, to be sent to other machines."""

    def stat(self) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds since the epoch, without reading; raises ImageError."""
        ...

    def read(self) -> tuple[bytes, int]:
        """Content and modification time; raises ImageError."""
        ...


class ImageRef(NamedTuple):
    """Reference to an image to index, or the reason why it cannot be indexed.

    A tuple, as there are millions: it takes a quarter of a dataclass' time to create and to send to another process.
    """

    key: str  # source folder / path inside it
    path: str  # displayed path; of an archive member zip://member::archive
    label: int = UNKNOWN
    target: int = -1
    source: str = ""
    generator: str = ""
    category: str = ""
    refused: str = ""  # why it cannot be indexed, "" if it can
    location: ByteSource | None = None  # None: the file at `path`, which is no link out of its source

    def refuse(self, why: str) -> ImageRef:
        """Return the image marked as refused."""
        return ImageRef(self.key, self.path, source=self.source, refused=why)

    @property
    def labels(self) -> tuple[int, int, str, str, str]:
        """Label, target, source, generator and category, as in `RowLabels`."""
        return self[2:7]

    @property
    def byte_source(self) -> ByteSource:
        """Location of the image's bytes."""
        return self.location or LocalFile(self.path, self._root)

    @property
    def _root(self) -> str:
        """Folder of the source, with a slash; "" if the key does not tell."""
        inside = self.key.partition("/")[2]
        return self.path[: -len(inside)] if inside and self.path.endswith(f"/{inside}") else ""


class PassedOver(NamedTuple):
    """Files of a source that are not indexed, for one reason."""

    reason: str  # what they are, in the plural
    files: int  # number of files, or of folders with all their files
    example: str  # displayed path of one of them


@dataclass(frozen=True)
class LocalFile:
    """File on this machine."""

    path: str
    within: str | None = None  # folder, with a slash, that a link must not lead out of; None: any link is followed

    def stat(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)  # noqa: PTH116 - a Path for each of millions costs more than the call
        except (OSError, ValueError) as e:
            raise unreadable(e) from e
        return status.st_size, status.st_mtime_ns

    def read(self) -> tuple[bytes, int]:
        try:
            # System calls, as creating a file object costs more than the read, under the GIL.
            handle, before = self._open()
            try:
                size, time = before.st_size, before.st_mtime_ns
                _check_size(size)
                content = read_up_to(handle, size + 1)  # one byte more shows whether the file grew
                after = os.fstat(handle)
            finally:
                os.close(handle)
        except OSError as e:
            raise unreadable(e) from e
        if (len(content), after.st_mtime_ns) != (size, time):
            raise ImageError("the file changed while it was read; run the command again when it is complete")
        return content, time

    def _open(self) -> tuple[int, os.stat_result]:
        if self.within is None:
            return open_regular(self.path)
        try:
            return open_regular(self.path, follow=False)
        except OSError as e:
            if e.errno != errno.ELOOP:
                raise
        target = os.path.realpath(self.path)
        if not self.within or not leads_inside(target, os.path.realpath(self.within)):
            raise ImageError(LINK_LEADS_OUT)
        return open_regular(target, follow=False)


def leads_inside(target: str, folder: str) -> bool:
    """True if a path is that of a folder or of anything in it; both are without links."""
    return f"{target}/".startswith(f"{folder.rstrip('/')}/")


class ArchiveSpan(NamedTuple):
    """Span of bytes in an archive, stored or deflated; the archive is read in place."""

    archive: str  # path or URL
    stamp: int  # modification time of the archive: a replaced archive is opened again
    offset: int  # of the data in a tar, of the local header in a zip
    packed: int  # bytes in the archive
    size: int  # bytes of the file
    time: int  # modification time of the file, nanoseconds since the epoch
    zipped: bool = False
    deflated: bool = False
    crc: int = -1  # CRC-32 of the file, -1 if unknown

    def stat(self) -> tuple[int, int]:
        return self.size, self.time

    def read(self) -> tuple[bytes, int]:
        _check_size(max(self.size, self.packed))
        content = self._stored()
        if self.deflated:
            try:
                content = decompressobj(-15).decompress(content, self.size + 1)
            except zlib_error as e:
                raise ImageError(f"cannot be unpacked: {e}") from e
        if len(content) != self.size:
            raise ImageError(f"damaged: {len(content):,} bytes, where the archive's directory says {self.size:,}")
        if self.crc >= 0 and crc32(content) != self.crc:
            raise ImageError("damaged: its checksum differs from the one in the archive's directory")
        return content, self.time

    def _stored(self) -> bytes:
        """Read the bytes as stored in the archive."""
        if not self.zipped:
            return read_range(self.archive, self.stamp, self.offset, self.packed)
        # The local header has variable length; one read usually covers both the header and the data.
        span = read_range(self.archive, self.stamp, self.offset, HEADER + self.packed)
        start = header_length(span, self.archive)
        if start > HEADER:
            return read_range(self.archive, self.stamp, self.offset + start, self.packed)
        return span[start : start + self.packed]


def header_length(header: bytes, archive: str) -> int:
    """Length of a zip's local header, from its first 30 bytes; raises ImageError."""
    if header[:4] != b"PK\x03\x04":
        raise ImageError(f"{archive} has no member where its directory says so; it was changed or damaged")
    return 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


@dataclass(frozen=True)
class InMemory:
    """Bytes held in memory, such as those from a stream that cannot be read twice."""

    content: bytes
    time: int  # any number that changes with the content, such as its time in nanoseconds since the epoch

    def stat(self) -> tuple[int, int]:
        return len(self.content), self.time

    def read(self) -> tuple[bytes, int]:
        return self.content, self.time


@dataclass(frozen=True)
class RemoteFile:
    """File at a URL that fsspec supports."""

    url: str
    size: int = -1  # -1: unknown
    time: int = 0  # nanoseconds since the epoch, 0: unknown

    def stat(self) -> tuple[int, int]:
        return self.size, self.time

    def read(self) -> tuple[bytes, int]:
        _check_size(self.size)
        content = read_url(self.url, BYTES_LIMIT + 1)
        if len(content) > BYTES_LIMIT:
            raise ImageError(f"more than {BYTES_LIMIT:,} bytes: too large for an image")
        return content, self.time


@dataclass(frozen=True)
class MissingFile:
    """File that a table names but that does not exist or cannot be read in place."""

    reason: str

    def stat(self) -> tuple[int, int]:
        raise ImageError(self.reason)

    def read(self) -> tuple[bytes, int]:
        raise ImageError(self.reason)


class _Handle:
    """File descriptor for `pread`, closed when the object is collected."""

    def __init__(self, path: str) -> None:
        self.number, _ = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=64)
def _opened(archive: str, stamp: int) -> _Handle:
    return _Handle(archive)


def read_range(archive: str, stamp: int, start: int, length: int) -> bytes:
    """Read a range of a local or remote file; thread-safe. Raises ImageError."""
    if is_url(archive):
        return read_url(archive, length, start)
    try:
        handle = _opened(archive, stamp)
        return os.pread(handle.number, length, start)
    except (OSError, ValueError, OverflowError) as e:  # a damaged archive may contain any number
        raise unreadable(e) from e


def too_large(size: int) -> str:
    """Why a file of `size` bytes is refused, "" if it is not."""
    return f"{size:,} bytes, more than {BYTES_LIMIT:,}: too large for an image" if size > BYTES_LIMIT else ""


def _check_size(size: int) -> None:
    if why := too_large(size):
        raise ImageError(why)
