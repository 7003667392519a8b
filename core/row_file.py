"""Rows of numbers in a file, read by system calls and never mapped into memory.

A page of a mapped file that cannot be read ends the process by SIGBUS: when another program cuts the file short, and
when the disk fails. A read that fails is an error.
"""

from __future__ import annotations

import math
import os
import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ClipfakeError
from .atomic_files import require_readable
from .reading import open_regular

GAP_BYTES = 8192  # a system call costs about as much as reading this many bytes
PIECE_BYTES = 1 << 17  # read at a time for a conversion, so that the bytes stay in the processor's cache
FEW_ROWS = 64  # not worth looking for gaps
ROWS_AT_ONCE = 1024  # rows that are not consecutive
MOST_OPEN = 4096  # files kept open in one process, if it may have four times as many


class _Descriptor:
    """Descriptor of an open file, closed with the last reference to it: a reader may be using it in a thread."""

    def __init__(self, path: Path) -> None:
        self.number, _ = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles:
    """The open files of this process. The one opened first is closed when there are too many; a later read opens it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._files: OrderedDict[weakref.ref[RowFile], None] = OrderedDict()

    def add(self, file: RowFile) -> None:
        with self._lock:
            self._files.pop(weakref.ref(file), None)
            self._files[weakref.ref(file)] = None
            if len(self._files) <= (most := most_open()):
                return
            self._files = OrderedDict.fromkeys(reference for reference in self._files if reference() is not None)
            while len(self._files) > most:
                oldest = self._files.popitem(last=False)[0]()
                if oldest is not None:
                    oldest.close()


def most_open() -> int:
    """Number of files to keep open: a quarter of the descriptors that this process may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if limit == resource.RLIM_INFINITY else max(min(limit // 4, MOST_OPEN), 1)


_OPEN = _OpenFiles()


class RowFile:
    """An array in a file, row after row. Indexing it with a slice, integers or a mask reads these rows.

    The file is kept open, so that it can be read after another has been renamed to its path. If it is too short, or is
    no longer open, the file at the path is opened.
    """

    def __init__(
        self,
        path: Path,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...],
        *,
        offset: int = 0,
        error: Callable[[str], ClipfakeError],
        verify: Callable[[], None] | None = None,
    ) -> None:
        """Open the file.

        Parameters
        ----------
        shape : of the array; the first dimension is the rows
        offset : bytes before the first row
        error : makes the error for a file that is missing, cut short or replaced, from a sentence that says so
        verify : raises an error unless another file at the path has the same rows (default: none has)
        """
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self.offset, self._row_bytes = offset, self.dtype.itemsize * math.prod(shape[1:])
        self._error, self._verify = error, verify
        self._identity: tuple[int, int] | None = None
        self._descriptor: _Descriptor | None = None
        self._open()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Read rows, or one row; raises `error` or Unreadable."""
        if isinstance(rows, int):
            row: npt.NDArray[Any] = self[np.array([range(len(self))[rows]])][0]
            return row
        if isinstance(rows, slice):
            count = len(range(*rows.indices(len(self))))
        else:
            rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
            count = len(rows)
        result = np.empty((count, *self.shape[1:]), self.dtype)
        self.copy_to(result, slice(0, count), rows)
        return result

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def copy_to(self, target: npt.NDArray[Any], slots: slice | npt.NDArray[np.int64], rows: Any) -> None:
        """Do `target[slots] = self[rows]` without a copy in between. `rows` is a slice or integers."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                self._copy_range(target, slots, start, max(start, stop))
                return
            rows = np.arange(start, stop, step)
        self._copy_rows(target, slots, rows)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._descriptor = None

    def _copy_range(
        self, target: npt.NDArray[Any], slots: slice | npt.NDArray[np.int64], start: int, stop: int
    ) -> None:
        if isinstance(slots, slice):
            target, slots = target[slots], slice(0, stop - start)
            if target.dtype == self.dtype and target.flags.c_contiguous:
                self._fill(target, start)
                return
        step = max(PIECE_BYTES // max(self._row_bytes, 1), 1)
        piece = np.empty((min(step, stop - start), *self.shape[1:]), self.dtype)
        for first in range(start, stop, step):
            count = min(step, stop - first)
            self._fill(piece[:count], first)
            target[_part(slots, first - start, count)] = piece[:count]

    def _copy_rows(
        self, target: npt.NDArray[Any], slots: slice | npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> None:
        if not len(rows):
            return
        if len(rows) <= FEW_ROWS:
            target[slots] = self._each(rows.tolist())
            return
        self._require_rows(rows.min(), rows.max())
        if (rows[1:] < rows[:-1]).any():
            order = np.argsort(rows, kind="stable")
            slots = np.arange(*slots.indices(len(target))) if isinstance(slots, slice) else slots
            rows, slots = rows[order], slots[order]
        elif isinstance(slots, slice):
            target, slots = target[slots], slice(0, len(rows))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            target[_part(slots, start, len(part))] = self._gather(part)

    def _require_rows(self, first: int, last: int) -> None:
        if first < 0 or last >= len(self):
            raise IndexError(f"rows {first} to {last} of {len(self)}")

    def _each(self, rows: list[int]) -> npt.NDArray[Any]:
        """Read rows one by one."""
        self._require_rows(min(rows), max(rows))
        size = self._row_bytes
        content = self._read_ranges([size] * len(rows), [self.offset + row * size for row in rows])
        return np.frombuffer(content, self.dtype).reshape(len(rows), *self.shape[1:])

    def _gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read rows in ascending order. Those with small gaps between them are read by one call, gaps included."""
        gaps = np.diff(rows)
        cuts = np.flatnonzero(gaps * self._row_bytes > GAP_BYTES)
        firsts, lasts = rows[np.concatenate([[0], cuts + 1])], rows[np.concatenate([cuts, [len(rows) - 1]])]
        counts = lasts - firsts + 1
        content = self._read_ranges(
            (counts * self._row_bytes).tolist(), (self.offset + firsts * self._row_bytes).tolist()
        )
        found = np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])
        if len(found) == len(rows) and not (gaps == 0).any():
            return found
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])  # rows read before each range
        sizes = np.diff(np.concatenate([[0], cuts + 1, [len(rows)]]))
        wanted: npt.NDArray[Any] = found[rows + np.repeat(before - firsts, sizes)]
        return wanted

    def _read_ranges(self, sizes: list[int], offsets: list[int]) -> bytes:
        """The bytes of several ranges of the file."""

        def read(descriptor: int) -> bytes | None:
            content = b"".join(map(os.pread, repeat(descriptor), sizes, offsets))
            return content if len(content) == sum(sizes) else None

        content: bytes = self._checked(read)
        return content

    def _fill(self, array: npt.NDArray[Any], first: int) -> None:
        """Read the rows from `first` on into a contiguous array."""
        if not array.nbytes:
            return
        buffer = array.reshape(-1).view(np.uint8).data
        offset = self.offset + first * self._row_bytes

        def read(descriptor: int) -> bool | None:
            done = 0
            while done < len(buffer):  # one call reads 2 GiB at most
                if not (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
                    return None
                done += count
            return True

        self._checked(read)

    def _checked(self, read: Callable[[int], Any]) -> Any:
        """The result of `read`, which returns None if the file is too short; a whole one may be in its place by now."""
        for _ in range(2):
            try:
                descriptor = self._descriptor or self._open()
                result = read(descriptor.number)
            except OSError as e:
                self.close()
                require_readable(self.path, e)
                raise self._error(f"{self.path} cannot be read ({e.strerror or e})") from e
            if result is not None:
                return result
            self.close()
        raise self._error(f"{self.path} was cut short while it was read")

    def _open(self) -> _Descriptor:
        try:
            descriptor = _Descriptor(self.path)
            found = os.fstat(descriptor.number)
        except OSError as e:
            require_readable(self.path, e)
            raise self._error(f"{self.path} cannot be opened ({e.strerror})") from e
        expected = self.offset + len(self) * self._row_bytes
        if found.st_size < expected:
            raise self._error(f"{self.path} was cut short: it has {found.st_size} bytes, at least {expected} expected")
        identity = (found.st_dev, found.st_ino)
        if self._identity not in (None, identity):
            if self._verify is None:
                raise self._error(f"{self.path} was replaced by another file while it was read")
            self._verify()
        self._identity, self._descriptor = identity, descriptor
        _OPEN.add(self)
        return descriptor


def _part(slots: slice | npt.NDArray[np.int64], start: int, count: int) -> slice | npt.NDArray[np.int64]:
    """Slots start to start + count - 1; a slice begins at 0."""
    return slice(start, start + count) if isinstance(slots, slice) else slots[start : start + count]


def copy_rows(source: RowFile | npt.NDArray[Any], rows: Any, target: npt.NDArray[Any], slots: Any) -> None:
    """Do `target[slots] = source[rows]`."""
    if isinstance(source, RowFile):
        source.copy_to(target, slots, rows)
    else:
        target[slots] = source[rows]
