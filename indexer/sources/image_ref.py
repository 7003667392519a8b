"""One image that is to be indexed: its key, what is known of it, and where its bytes are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol
from zlib import crc32, decompressobj
from zlib import error as zlib_error

from ...errors import ImageError, MissingExtra, SourceError
from ...store.records import UNKNOWN

BYTES_LIMIT = 1 << 28  # 256 MiB: no image file we know of is larger, a zip bomb is
HEADER = 512  # bytes that a zip's header before a file seldom exceeds: 30, its path and extra fields


class ByteSource(Protocol):
    """Interface of a place that an image's bytes are read from. Small and picklable, for other machines."""

    def facts(self) -> tuple[int, int]:
        """Size in bytes and time in nanoseconds since the epoch, without reading the content; raises ImageError."""
        ...

    def read(self) -> tuple[bytes, int]:
        """The content and its time; raises ImageError."""
        ...


class ImageRef(NamedTuple):
    """One image that is to be indexed, or the reason it cannot be.

    A tuple, for there are millions of them: a quarter of a dataclass' time to make and to send to another process.
    """

    key: str  # source folder / path inside it
    path: str  # for people; a member of an archive as zip://member::archive
    label: int = UNKNOWN
    target: int = -1
    source: str = ""
    generator: str = ""
    category: str = ""
    refused: str = ""  # why it is left out, "" if it is not
    where: ByteSource | None = None  # None: the file at `path`

    def refuse(self, why: str) -> ImageRef:
        """Return the image marked as refused."""
        return ImageRef(self.key, self.path, source=self.source, refused=why)

    @property
    def place(self) -> ByteSource:
        return self.where or LocalFile(self.path)


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: str

    def facts(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)  # noqa: PTH116 - a Path for each of millions costs more than the call
        except (OSError, ValueError) as e:
            raise _unreadable(e) from e
        return status.st_size, status.st_mtime_ns

    def read(self) -> tuple[bytes, int]:
        try:
            # Bare calls: a file object would cost more than the reading, under the GIL.
            # Not blocking: a pipe that nobody writes to would hold up the run.
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                before = os.fstat(handle)
                if not stat.S_ISREG(before.st_mode):
                    raise ImageError("not a regular file")
                size, when = before.st_size, before.st_mtime_ns
                _refuse_giant(size)
                content = _read_to(handle, size + 1)  # a byte more would show that it grew
                after = os.fstat(handle)
            finally:
                os.close(handle)
        except (OSError, ValueError) as e:
            raise _unreadable(e) from e
        if (len(content), after.st_mtime_ns) != (size, when):
            raise ImageError("the file changed while it was read; run the command again when it is complete")
        return content, when


def _read_to(handle: int, most: int) -> bytes:
    """A file's bytes up to so many, fewer where it ends."""
    content = os.read(handle, most)
    while len(content) < most - 1 and (more := os.read(handle, most - len(content))):
        content += more  # a disk behind a network may hand them out in pieces
    return content


class ArchiveSpan(NamedTuple):
    """Bytes inside an archive, stored as they are or deflated; the archive is read in place."""

    archive: str  # path or URL
    stamp: int  # the archive's own time: a replaced archive is opened anew
    offset: int  # of the data in a tar, of the local header in a zip
    packed: int  # bytes in the archive
    size: int  # bytes of the file
    time: int
    zipped: bool = False
    deflated: bool = False
    crc: int = -1  # CRC-32 of the file, -1 where the archive tells none

    def facts(self) -> tuple[int, int]:
        return self.size, self.time

    def read(self) -> tuple[bytes, int]:
        _refuse_giant(max(self.size, self.packed))
        content = self._stored()
        if self.deflated:
            try:
                content = decompressobj(-15).decompress(content, self.size + 1)
            except zlib_error as e:
                raise ImageError(f"cannot be unpacked: {e}") from e
        if len(content) != self.size:
            raise ImageError(f"{len(content):,} bytes where the archive promises {self.size:,}; it is damaged")
        if self.crc >= 0 and crc32(content) != self.crc:
            raise ImageError("other bytes than the archive's checksum promises; it is damaged")
        return content, self.time

    def _stored(self) -> bytes:
        """The bytes as they lie in the archive."""
        if not self.zipped:
            return read_range(self.archive, self.stamp, self.offset, self.packed)
        # The header before them has a name and an extra field as long as they say: mostly one reading has it all.
        found = read_range(self.archive, self.stamp, self.offset, HEADER + self.packed)
        start = header_length(found, self.archive)
        if start > HEADER:
            return read_range(self.archive, self.stamp, self.offset + start, self.packed)
        return found[start : start + self.packed]


def header_length(header: bytes, archive: str) -> int:
    """Number of bytes before a file in a zip, from the first 30 of them; raises ImageError."""
    if header[:4] != b"PK\x03\x04":
        raise ImageError(f"{archive} has no member where its directory says so; it was changed or damaged")
    return 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


@dataclass(frozen=True)
class InMemory:
    """Bytes that came by in a stream that cannot be read twice."""

    content: bytes
    time: int

    def facts(self) -> tuple[int, int]:
        return len(self.content), self.time

    def read(self) -> tuple[bytes, int]:
        return self.content, self.time


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL that fsspec understands."""

    url: str
    size: int = -1  # -1: not told by the listing
    time: int = 0

    def facts(self) -> tuple[int, int]:
        return self.size, self.time

    def read(self) -> tuple[bytes, int]:
        _refuse_giant(self.size)
        try:
            system, path = file_system(self.url)
            return bytes(system.cat_file(path)), self.time
        except (OSError, ValueError) as e:
            raise _unreadable(e) from e


@dataclass(frozen=True)
class MissingFile:
    """Named by a table, but not there."""

    reason: str

    def facts(self) -> tuple[int, int]:
        raise ImageError(self.reason)

    def read(self) -> tuple[bytes, int]:
        raise ImageError(self.reason)


def is_url(place: str) -> bool:
    return "://" in place


class _Handle:
    """An open file for `pread`, closed when nobody holds it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=64)
def _opened(archive: str, stamp: int) -> _Handle:
    return _Handle(archive)


def read_range(archive: str, stamp: int, start: int, length: int) -> bytes:
    """Some bytes of a local or remote file, from any thread; raises ImageError."""
    try:
        if is_url(archive):
            system, path = file_system(archive)
            return bytes(system.cat_file(path, start=start, end=start + length))
        handle = _opened(archive, stamp)
        return os.pread(handle.number, length, start)
    except (OSError, ValueError, OverflowError) as e:  # an archive may tell any number
        raise _unreadable(e) from e


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; raises MissingExtra or SourceError."""
    try:
        import fsspec
    except ImportError as e:
        raise MissingExtra(f"reading {url}", "cloud") from e
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise MissingExtra(f"reading {url}", "cloud") from e
    except (ValueError, OSError) as e:
        raise SourceError(f"{url} cannot be opened: {e}") from e
    return system, str(path)


def _unreadable(e: Exception) -> ImageError:
    return ImageError(f"cannot be read: {getattr(e, 'strerror', None) or e}")


def giant(size: int) -> str:
    """Why a file of so many bytes is not read, "" if it is."""
    return f"{size:,} bytes, more than {BYTES_LIMIT:,}: too large for an image" if size > BYTES_LIMIT else ""


def _refuse_giant(size: int) -> None:
    if why := giant(size):
        raise ImageError(why)
