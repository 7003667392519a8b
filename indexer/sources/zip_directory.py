"""Directory of a zip archive, read from its end and kept as raw bytes, since it may list millions of files.

On top of these bytes a member costs 12, to be found by its name; zipfile makes an object of each before the first can
be read. Only the directory is read here, nothing of the members.
"""

from __future__ import annotations

import posixpath
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from struct import Struct, error
from typing import BinaryIO, NamedTuple

import numpy as np

from ...errors import SourceError
from .cloud import open_binary
from .tables import METADATA

END = Struct("<4s4H2LH")  # signature, disk, disk of the directory, members here, members, bytes, offset, comment
END_64 = Struct("<4sQ2H2L4Q")  # signature, size, versions, disk, disk of the directory, the same four as above
LOCATOR_64 = Struct("<4sLQL")  # signature, disk, where END_64 is, disks
LENGTHS = Struct("<L4xH18x3H")  # of a record: signature, flags, lengths of the name, the extra field and the comment
RECORD = Struct("<8x4H3L5H2L")  # flags, method, time, date, CRC, packed, size, lengths, disk, attributes, offset
SIGNATURE = 0x02014B50  # of a record
RECORD_BYTES = 46  # before the name
IN_EXTRA = 0xFFFFFFFF  # a number that stands in the zip64 extra field
ENCRYPTED, UTF_8 = 1, 0x800  # flags
STORED, DEFLATED = 0, 8  # methods
TABLES = tuple(name.encode() for name in METADATA)

EPOCH = date(1970, 1, 1).toordinal()


class ZipMember(NamedTuple):
    """One file of an archive."""

    offset: int  # of its local header
    packed: int  # bytes in the archive
    size: int  # bytes of the file
    method: int  # 0: stored, 8: deflated
    encrypted: bool
    crc: int
    time: int  # nanoseconds since the epoch, by whole seconds


class ZipDirectory:
    """The files of a zip archive, in its order; raises SourceError where it has no directory that can be read.

    Where a name stands twice, the last counts, as if all were unpacked.
    """

    def __init__(self, at: str) -> None:
        self._at = at
        try:
            with open_binary(at) as file:
                # held, not mapped: a mapped file that is cut short meanwhile would end the process
                self._bytes, self._shift = _directory_of(file)
        except (OSError, ValueError) as e:
            raise self._unreadable(str(e)) from e
        self.tables: list[str] = []  # paths of the metadata tables
        marks, starts = array("q"), array("Q")
        try:
            for start, raw in self._records():
                if raw.endswith(TABLES) and not _is_macos(raw):
                    path = self._path(start, raw)  # where a name has a NUL in it, not what it ends in
                    if posixpath.basename(path) in METADATA:
                        self.tables.append(path)
                marks.append(hash(_raw(self._path(start, raw)) if _is_odd(raw) else raw))
                starts.append(start)
        except error as e:
            raise self._unreadable("its directory is cut short") from e
        order = np.argsort(np.asarray(marks), kind="stable")
        narrow = np.uint32 if len(self._bytes) < 1 << 32 else np.uint64
        self._marks = np.asarray(marks)[order].data
        self._starts = np.asarray(starts)[order].astype(narrow).data
        self._replaced = self._earlier_ones()
        self._next = 0  # where the record after the one that was found last begins

    def files(self) -> Iterator[tuple[str, int]]:
        """Path inside and place in the directory of each file; not of folders, nor of what macOS adds for itself."""
        for start, raw in self._records():
            if not (raw.endswith(b"/") or start in self._replaced or (b"__MACOSX/" in raw and _is_macos(raw))):
                yield (self._path(start, raw) if _is_odd(raw) else raw.decode("ascii")), start

    def find(self, inside: str) -> int | None:
        """The place of the file of this path, None if there is none."""
        raw = _raw(inside)
        if _is_odd(raw):
            raw = posixpath.normpath(raw.strip(b"/"))
        start = self._next if self._is_at(self._next, raw) else self._found(raw)
        if start is not None:
            _, _, *lengths = LENGTHS.unpack_from(self._bytes, start)
            self._next = start + RECORD_BYTES + sum(lengths)
        return start

    def _is_at(self, start: int, raw: bytes) -> bool:
        """True if the record here has this name, byte for byte: tables mostly list files in the archive's order."""
        length = self._bytes[start + 28 : start + 30]
        same = self._bytes.startswith(raw, start + RECORD_BYTES) and int.from_bytes(length, "little") == len(raw)
        return same and start not in self._replaced

    def _found(self, raw: bytes) -> int | None:
        mark = hash(raw)
        i = bisect_right(self._marks, mark) - 1  # the last of its name, if it is the name
        while i >= 0 and self._marks[i] == mark:
            if _raw(self._path_at(self._starts[i])) == raw:
                return self._starts[i]
            i -= 1
        return None

    def member(self, start: int) -> ZipMember:
        """Parse the record at a place in the directory."""
        flags, method, time, day, crc, packed, size, name, extra, _, _, _, _, offset = RECORD.unpack_from(
            self._bytes, start
        )
        if IN_EXTRA in (packed, size, offset):
            at = start + RECORD_BYTES + name
            size, packed, offset = _wide(self._bytes[at : at + extra], size, packed, offset)
        seconds = _midnight(day) + (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
        return ZipMember(offset + self._shift, packed, size, method, bool(flags & ENCRYPTED), crc, seconds * 10**9)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Place and name of every record."""
        held, at, unpack = self._bytes, 0, LENGTHS.unpack_from
        while at < len(held):
            signature, _, name, extra, comment = unpack(held, at)
            if signature != SIGNATURE:
                raise self._unreadable("its directory is damaged")
            start, at = at, at + RECORD_BYTES + name + extra + comment
            yield start, held[start + RECORD_BYTES : start + RECORD_BYTES + name]
        if at != len(held):
            raise self._unreadable("its directory is cut short")

    def _path_at(self, start: int) -> str:
        _, _, length, _, _ = LENGTHS.unpack_from(self._bytes, start)
        return self._path(start, self._bytes[start + RECORD_BYTES : start + RECORD_BYTES + length])

    def _path(self, start: int, raw: bytes) -> str:
        """The path a name would be unpacked to; one that leads out of the archive begins with `../`."""
        if not _is_odd(raw):
            return raw.decode("ascii")
        raw = raw.partition(b"\0")[0]
        _, flags, *_ = LENGTHS.unpack_from(self._bytes, start)
        try:
            name = raw.decode("utf-8", "surrogateescape" if flags & UTF_8 else "strict")  # macOS leaves the flag out
        except UnicodeDecodeError:
            name = raw.decode("cp437")
        return posixpath.normpath(name.strip("/"))

    def _earlier_ones(self) -> frozenset[int]:
        """Places of the files that another of the same name follows."""
        marks = np.asarray(self._marks)
        pairs = ((self._starts[i], self._starts[i + 1]) for i in np.flatnonzero(marks[1:] == marks[:-1]).tolist())
        return frozenset(one for one, later in pairs if self._path_at(one) == self._path_at(later))

    def _unreadable(self, why: str) -> SourceError:
        return SourceError(f"{self._at} is not a readable zip archive ({why}); fetch it again")


def _is_odd(raw: bytes) -> bool:
    """True if a name needs a closer look: a plain one is a normalised ASCII path."""
    return not raw.isascii() or raw[:1] in b"./" or b"/." in raw or b"//" in raw or b"\0" in raw


def _is_macos(raw: bytes) -> bool:
    """True for files that macOS adds to archives."""
    return b"__MACOSX" in raw.split(b"/")[:-1]


def _raw(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, as a table in JSON may have it: no archive's name is like it
        return path.encode("utf-8", "surrogatepass")


def _directory_of(file: BinaryIO) -> tuple[bytes, int]:
    """The directory's bytes, and how much its offsets are to be raised: something may lie before the archive."""
    length = file.seek(0, 2)
    tail_at = max(length - END.size - LOCATOR_64.size - 0xFFFF, 0)
    file.seek(tail_at)
    tail = file.read(length - tail_at)
    found = _end(tail)
    if found < 0:
        raise ValueError("no directory at its end")
    _, disk, _, here, members, size, offset, _ = END.unpack_from(tail, found)
    ends = tail_at + found
    at = found - LOCATOR_64.size
    if at >= 0 and tail[at : at + 4] == b"PK\x06\x07":
        _, _, told_at, disks = LOCATOR_64.unpack_from(tail, at)
        ends, wide = _end_64(file, told_at, tail_at + at)
        _, _, _, _, disk, _, here, members, size, offset = END_64.unpack(wide)
        disk = disk or disks > 1
    if disk or here != members:
        raise ValueError("one of several volumes: join them first")
    start = ends - size
    if start < 0 or start < offset:
        raise ValueError("its directory is cut short")
    file.seek(start)
    held = file.read(size)
    if len(held) != size:
        raise ValueError("its directory is cut short")
    return held, start - offset


def _end(tail: bytes) -> int:
    """Find the end record in the last bytes of an archive, -1 if there is none; its comment may look like one."""
    last = at = tail.rfind(b"PK\x05\x06", 0, max(len(tail) - END.size + 4, 0))
    while at >= 0:
        if at + END.size + END.unpack_from(tail, at)[-1] == len(tail):
            return at
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return last  # something was appended


def _end_64(file: BinaryIO, told_at: int, locator_at: int) -> tuple[int, bytes]:
    """Place and bytes of the zip64 end record: where it is said to be, or, if something lies before the archive, just
    before the locator."""
    for at in (told_at, locator_at - END_64.size):
        if 0 <= at <= locator_at - END_64.size:
            file.seek(at)
            wide = file.read(END_64.size)
            if wide[:4] == b"PK\x06\x06":
                return at, wide
    raise ValueError("its zip64 end record is missing")


def _wide(extra: bytes, *count: int) -> list[int]:
    """Numbers of a record, those that do not fit taken from the zip64 extra field in the order they stand there."""
    wide: list[int] = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            end = min(at + 4 + length, len(extra))
            wide = [int.from_bytes(extra[i : i + 8], "little") for i in range(at + 4, end - 7, 8)]
        at += 4 + length
    given = iter(wide)
    return [next(given, number) if number == IN_EXTRA else number for number in count]


@lru_cache(maxsize=256)
def _midnight(day: int) -> int:
    """Seconds from the epoch to the start of a day as MS-DOS writes it; what is no day is taken as the nearest."""
    month = min(max(day >> 5 & 15, 1), 12)
    return (date(1980 + (day >> 9), month, 1).toordinal() - EPOCH + (day & 31) - 1) * 86400
