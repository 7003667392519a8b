"""Open files that others made. Only regular files are opened, and no more is read than was expected.

A pipe without a writer would block, a device never ends, and a sparse file may claim terabytes: each is an OSError
here, which says what the file is. Errors never quote the content of a file.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

SMALL_FILE = 1 << 28  # 256 MiB: limit of files that are read into memory as a whole, such as JSON
BUFFER = 1 << 20  # bytes read at once from a stream

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# Without O_NONBLOCK, opening a pipe without a writer blocks. The flag is kept, as some files of /proc and /sys block
# readers as well; it has no effect on the regular files of a disk.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> tuple[int, os.stat_result]:
    """Open a regular file for reading, and return its descriptor and status.

    Parameters
    ----------
    follow : open the file that a symbolic link points to; otherwise a link raises OSError with `errno.ELOOP`

    Raises
    ------
    OSError
        There is no such file, it cannot be opened, or it is no regular file. The error is IsADirectoryError for a
        folder, and has `errno.EINVAL` for a pipe, a device, a socket and a path that no file can have.
    """
    try:
        handle = os.open(path, _FLAGS if follow else _FLAGS | NO_FOLLOW)
    except ValueError as e:  # a NUL byte or an unpaired surrogate
        raise OSError(errno.EINVAL, "no file can have this path", _shown(path)) from e
    except OSError as e:
        if e.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "it is a socket, a device or a pipe, not a regular file", _shown(path)) from e
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            _refuse(status.st_mode, path)
    except BaseException:
        os.close(handle)
        raise
    return handle, status


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError as `open_regular` does, for a file that another library opens by its path."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - `Path.stat` raises ValueError for some paths
    except ValueError as e:
        raise OSError(errno.EINVAL, "no file can have this path", _shown(path)) from e
    if not stat.S_ISREG(mode):
        _refuse(mode, path)


def _refuse(mode: int, path: str | os.PathLike[str]) -> NoReturn:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), _shown(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", _shown(path))


def _shown(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))[1:-1][:1000]


def open_stream(path: str | os.PathLike[str], *, buffer: int = BUFFER) -> BinaryIO:
    """Open a regular file as a stream, which ends where the file ended when it was opened.

    Reading raises OSError when the file has grown or shrunk meanwhile, so that no table is read by half.
    """
    return io.BufferedReader(_RegularFile(path), buffer)


class _RegularFile(io.FileIO):
    """Regular file that is not read beyond its size."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        handle, status = open_regular(path)
        super().__init__(handle)
        self._path, self._position, self._size = path, 0, status.st_size

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = super().seek(offset, whence)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        remaining = max(self._size - self._position, 0)
        count = super().readinto(view[:remaining]) or 0
        self._position += count
        if not count and os.fstat(self.fileno()).st_size != self._size:
            raise OSError(errno.EINVAL, "it changed while it was read; try again when it is complete", str(self._path))
        return count

    def readall(self) -> bytes:
        content = bytearray()
        while piece := self.read(BUFFER):
            content += piece
        return bytes(content)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        piece = bytearray(min(size, max(self._size - self._position, 0)))
        return bytes(piece[: self.readinto(piece)])


def read_bounded(path: str | os.PathLike[str], limit: int = SMALL_FILE) -> bytes:
    """Read a regular file of at most `limit` bytes; raises OSError as `open_regular` does, or for a larger file."""
    handle, status = open_regular(path)
    try:
        size = status.st_size
        # one byte more shows whether the file grew; files of /proc have content and no size
        content = b"" if size > limit else read_up_to(handle, min(size or limit, limit) + 1)
    finally:
        os.close(handle)
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it has {max(size, len(content)):,} bytes, more than {limit:,}", str(path))
    return content


def read_up_to(handle: int, limit: int) -> bytes:
    """Read at most `limit` bytes of a file, fewer if it ends before."""
    content = os.read(handle, limit)
    if not content or len(content) >= limit - 1:  # nearly always
        return content
    pieces = [content]
    missing = limit - len(content)
    while missing > 0 and (piece := os.read(handle, min(missing, BUFFER))):
        pieces.append(piece)  # a network file system may return fewer bytes than requested
        missing -= len(piece)
    return b"".join(pieces)


def read_text(path: Path, limit: int = SMALL_FILE) -> str:
    """Read a UTF-8 text as `read_bounded` does; raises OSError or ValueError."""
    return read_bounded(path, limit).decode("utf-8")


def shown_names(names: Iterable[str], known: Collection[str] = ()) -> str:
    """Names of columns as an error may quote them: what looks like the content of another file is only counted.

    >>> shown_names(["id", "class"]), shown_names(["root:x:0:0:root:/root:/bin/sh"]), shown_names([])
    ('id, class', '1 that look like no headings', 'none')
    """
    names = list(names)
    plain = [name for name in names if name in known or re.fullmatch(r"[\w .()-]{1,40}", name)]
    if len(plain) < len(names) or (len(names) == 1 and names[0] not in known):
        return f"{len(names):,} that look like no headings"
    return ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "") or "none"
