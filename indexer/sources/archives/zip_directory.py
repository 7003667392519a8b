"""Directory of a zip archive, kept as raw bytes, as it may list millions of files.

In addition to these bytes, the index of names takes 12 bytes per member; zipfile creates an object for every member
before the first can be read. Only the directory is read here, not the members.
"""

from __future__ import annotations

import posixpath
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from struct import Struct, error
from typing import BinaryIO, NamedTuple

import numpy as np

from ....errors import SourceError
from ..cloud import open_binary
from ..tables.reading import METADATA, is_metadata

END = Struct("<4s4H2LH")  # signature, disk, directory's disk, members on this disk, members, bytes, offset, comment
END_64 = Struct("<4sQ2H2L4Q")  # signature, size, versions, disk, directory's disk, the same four as above
LOCATOR_64 = Struct("<4sLQL")  # signature, disk, offset of END_64, disks
LENGTHS = Struct("<L4xH18x3H")  # of a record: signature, flags, lengths of the name, the extra field and the comment
RECORD = Struct("<4x6H3L5H2L")  # versions, flags, method, time, date, CRC, sizes, lengths, disk, attributes, offset
SIGNATURE = 0x02014B50  # signature of a record
RECORD_BYTES = 46  # length of a record before its name
IN_EXTRA = 0xFFFFFFFF  # marks a number that is in the zip64 extra field
UNIX = (3, 19)  # systems, of which the archive was made by one, that have symbolic links: Unix, macOS
ENCRYPTED, UTF_8 = 1, 0x800  # flags
STORED, DEFLATED = 0, 8  # compression methods
TABLES = tuple(name.encode() for name in METADATA)
TABLE_BYTES = max(map(len, TABLES))

DIRECTORY_LIMIT = 1 << 31  # bytes: more than 20 million files
EPOCH = date(1970, 1, 1).toordinal()


class ZipMember(NamedTuple):
    """File in a zip archive."""

    offset: int  # of its local header
    packed: int  # bytes in the archive
    size: int  # bytes of the file
    method: int  # 0: stored, 8: deflated
    encrypted: bool
    crc: int
    time: int  # nanoseconds since the epoch, in whole seconds
    is_link: bool  # a symbolic link, whose content is the path that it points to


class ZipDirectory:
    """Files of a zip archive, in its order; raises SourceError if the directory cannot be read.

    If a name occurs twice, the last file counts, as if all were unpacked.
    """

    def __init__(self, path: str) -> None:
        self._archive = path
        try:
            with open_binary(path) as file:
                # read, not mapped: truncating a mapped file would crash the process
                self._bytes, self._shift = _directory_of(file)
        except (OSError, ValueError, MemoryError) as e:
            raise self._unreadable(str(e) or "not enough memory for its directory") from e
        self.tables: list[str] = []  # paths of the metadata tables
        hashes, starts = array("q"), array("Q")
        try:
            for start, raw in self._records():
                if raw[-TABLE_BYTES:].lower().endswith(TABLES):
                    path = self._path(start, raw)  # a name ends at its first NUL
                    if is_metadata(posixpath.basename(path)):
                        self.tables.append(path)
                hashes.append(hash(_raw(self._path(start, raw)) if _is_odd(raw) else raw))
                starts.append(start)
        except error as e:
            raise self._unreadable("its directory is truncated") from e
        order = np.argsort(np.asarray(hashes), kind="stable")
        narrow = np.uint32 if len(self._bytes) < 1 << 32 else np.uint64
        self._hashes = np.asarray(hashes)[order].data
        self._starts = np.asarray(starts)[order].astype(narrow).data
        self._replaced = self._replaced_starts()
        self._next = 0  # offset of the record after the last one found

    def files(self) -> Iterator[tuple[str, int]]:
        """Iterate over path and directory offset of each file, without folders."""
        for start, raw in self._records():
            if not (raw.endswith((b"/", b"\\")) or start in self._replaced):
                yield (self._path(start, raw) if _is_odd(raw) else raw.decode("ascii")), start

    def find(self, inside: str) -> int | None:
        """Return the directory offset of the file at a path, None if there is none."""
        raw = _raw(inside)
        if _is_odd(raw):
            if b"\\" in raw:
                return None
            raw = posixpath.normpath(raw.strip(b"/"))
        start = self._next if self._is_at(self._next, raw) else self._look_up(raw)
        if start is not None:
            _, _, *lengths = LENGTHS.unpack_from(self._bytes, start)
            self._next = start + RECORD_BYTES + sum(lengths)
        return start

    def _is_at(self, start: int, raw: bytes) -> bool:
        """True if the record at `start` has exactly this name: tables mostly list files in the archive's order."""
        length = self._bytes[start + 28 : start + 30]
        same = self._bytes.startswith(raw, start + RECORD_BYTES) and int.from_bytes(length, "little") == len(raw)
        return same and start not in self._replaced

    def _look_up(self, raw: bytes) -> int | None:
        value = hash(raw)
        i = bisect_right(self._hashes, value) - 1  # the last file of this hash
        while i >= 0 and self._hashes[i] == value:
            if _raw(self._path_at(self._starts[i])) == raw:
                return self._starts[i]
            i -= 1
        return None

    def member(self, start: int) -> ZipMember:
        """Parse the record at a directory offset."""
        made_by, _, flags, method, time, day, crc, packed, size, name, extra, _, _, _, attributes, offset = (
            RECORD.unpack_from(self._bytes, start)
        )
        if IN_EXTRA in (packed, size, offset):
            extra_start = start + RECORD_BYTES + name
            size, packed, offset = _wide(self._bytes[extra_start : extra_start + extra], size, packed, offset)
        seconds = _midnight(day) + (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
        is_link = made_by >> 8 in UNIX and stat.S_ISLNK(attributes >> 16)
        return ZipMember(
            offset + self._shift, packed, size, method, bool(flags & ENCRYPTED), crc, seconds * 10**9, is_link
        )

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over directory offset and name of every record."""
        directory, end, unpack = self._bytes, 0, LENGTHS.unpack_from
        while end < len(directory):
            signature, _, name, extra, comment = unpack(directory, end)
            if signature != SIGNATURE:
                raise self._unreadable("its directory is damaged")
            start, end = end, end + RECORD_BYTES + name + extra + comment
            yield start, directory[start + RECORD_BYTES : start + RECORD_BYTES + name]
        if end != len(directory):
            raise self._unreadable("its directory is truncated")

    def _path_at(self, start: int) -> str:
        _, _, length, _, _ = LENGTHS.unpack_from(self._bytes, start)
        return self._path(start, self._bytes[start + RECORD_BYTES : start + RECORD_BYTES + length])

    def _path(self, start: int, raw: bytes) -> str:
        """Path to which a name would be unpacked; it begins with `../` if it is outside of the archive."""
        if not _is_odd(raw):
            return raw.decode("ascii")
        raw = raw.partition(b"\0")[0]
        _, flags, *_ = LENGTHS.unpack_from(self._bytes, start)
        try:
            name = raw.decode("utf-8", "surrogateescape" if flags & UTF_8 else "strict")  # macOS does not set the flag
        except UnicodeDecodeError:
            name = raw.decode("cp437")
        return posixpath.normpath(name.replace("\\", "/").strip("/"))  # some Windows programs write backslashes

    def _replaced_starts(self) -> frozenset[int]:
        """Directory offsets of the files that are replaced by a later one of the same name."""
        hashes = np.asarray(self._hashes)
        pairs = ((self._starts[i], self._starts[i + 1]) for i in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist())
        return frozenset(earlier for earlier, later in pairs if self._path_at(earlier) == self._path_at(later))

    def _unreadable(self, why: str) -> SourceError:
        return SourceError(f"{self._archive} is not a readable zip archive ({why}); download it again")


def _is_odd(raw: bytes) -> bool:
    """True if a name is not a normalised ASCII path."""
    return not raw.isascii() or raw[:1] in b"./" or b"/." in raw or b"//" in raw or b"\\" in raw or b"\0" in raw


def _raw(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # an unpaired surrogate from a JSON table, which no name in an archive contains
        return path.encode("utf-8", "surrogatepass")


def _directory_of(file: BinaryIO) -> tuple[bytes, int]:
    """Return the directory's bytes, and how many bytes precede the archive, to be added to its offsets."""
    length = file.seek(0, 2)
    tail_start = max(length - END.size - LOCATOR_64.size - 0xFFFF, 0)
    file.seek(tail_start)
    tail = file.read(length - tail_start)
    end_start = _find_end(tail)
    if end_start < 0:
        raise ValueError("no directory at its end")
    _, disk, _, members_on_disk, members, size, offset, _ = END.unpack_from(tail, end_start)
    directory_end = tail_start + end_start
    locator = end_start - LOCATOR_64.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        _, _, end_64_start, disks = LOCATOR_64.unpack_from(tail, locator)
        directory_end, record = _end_64(file, end_64_start, tail_start + locator)
        _, _, _, _, disk, _, members_on_disk, members, size, offset = END_64.unpack(record)
        disk = disk or disks > 1
    if disk or members_on_disk != members:
        raise ValueError("one of several volumes: join them first")
    start = directory_end - size
    if start < 0 or start < offset:
        raise ValueError("its directory is truncated")
    if size > DIRECTORY_LIMIT:
        raise ValueError(f"its directory has {size:,} bytes, more than {DIRECTORY_LIMIT:,}")
    file.seek(start)
    directory = file.read(size)
    if len(directory) != size:
        raise ValueError("its directory is truncated")
    return directory, start - offset


def _find_end(tail: bytes) -> int:
    """Find the end record in the last bytes of an archive, -1 if there is none; its comment may look like one."""
    last = start = tail.rfind(b"PK\x05\x06", 0, max(len(tail) - END.size + 4, 0))
    while start >= 0:
        if start + END.size + END.unpack_from(tail, start)[-1] == len(tail):
            return start
        start = tail.rfind(b"PK\x05\x06", 0, start)
    return last  # data was appended to the archive


def _end_64(file: BinaryIO, stated_start: int, locator_start: int) -> tuple[int, bytes]:
    """Offset and bytes of the zip64 end record.

    It is at the stated offset or, if other data precedes the archive, just before the locator.
    """
    for start in (stated_start, locator_start - END_64.size):
        if 0 <= start <= locator_start - END_64.size:
            file.seek(start)
            record = file.read(END_64.size)
            if record[:4] == b"PK\x06\x06":
                return start, record
    raise ValueError("its zip64 end record is missing")


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """Return the numbers of a record, with those that do not fit replaced, in order, from the zip64 extra field."""
    wide: list[int] = []
    start = 0
    while start + 4 <= len(extra):
        kind = int.from_bytes(extra[start : start + 2], "little")
        length = int.from_bytes(extra[start + 2 : start + 4], "little")
        if kind == 1:
            end = min(start + 4 + length, len(extra))
            wide = [int.from_bytes(extra[i : i + 8], "little") for i in range(start + 4, end - 7, 8)]
        start += 4 + length
    replacements = iter(wide)
    return [next(replacements, number) if number == IN_EXTRA else number for number in numbers]


@lru_cache(maxsize=256)
def _midnight(day: int) -> int:
    """Seconds from the epoch to the start of an MS-DOS date; an invalid date is moved to the nearest valid one."""
    month = min(max(day >> 5 & 15, 1), 12)
    return (date(1980 + (day >> 9), month, 1).toordinal() - EPOCH + (day & 31) - 1) * 86400
