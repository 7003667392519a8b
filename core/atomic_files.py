"""Atomic writes: a temporary file is written, flushed to disk and renamed, and its folder flushed as well.

Errors of the disk are raised as StoreError.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import StoreError, Unflushed, Unreadable
from .reading import read_text

TEMPORARY = ".tmp"  # suffix of temporary files, which a killed writer leaves behind
FILL_BYTES = 1 << 20  # written at a time where disk space cannot be reserved

# What a file system answers that lacks an operation.
_LACKING = frozenset((errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODEV))
# What SMB and other shared folders answer to flushing a folder.
_UNFLUSHED_FOLDER = _LACKING | {errno.EACCES, errno.EPERM, errno.EISDIR}
# What file systems answer that have no hard links.
_WITHOUT_LINKS = _LACKING | {errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV}
# Errors of reading that concern the file itself: it is missing or not a file, an offset found in it is impossible, or
# the file system has found its content damaged (ext4 and XFS answer EUCLEAN and EBADMSG). All others say nothing about
# the content, also EIO, which cables and mounts cause as well.
_OF_THE_FILE = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "EOVERFLOW", "EFBIG", "EILSEQ"),
        *("EUCLEAN", "EBADMSG"),
    )
    if hasattr(errno, name)
)


_TEMPORARY = re.compile(rf"(.+)\.[0-9a-f]+{re.escape(TEMPORARY)}", re.DOTALL)


def temporary_name(name: str) -> str:
    """A name for what becomes `name` when it is complete. No other process has it, on any host."""
    return f"{name}.{secrets.token_hex(6)}{TEMPORARY}"


def final_name(name: str) -> str:
    """What a temporary name becomes when its file or folder is complete, "" for any other name.

    >>> final_name(temporary_name("a.json")), final_name("a.json")
    ('a.json', '')
    """
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else ""


def require_readable(path: Path, error: BaseException) -> None:
    """Raise Unreadable if an error of reading says nothing about the content: no permission, or a failing disk.

    Errors without a number of the operating system are of the library that parses the content.
    """
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _OF_THE_FILE:
        raise Unreadable(
            f"{path} cannot be read now ({os.strerror(error.errno)}), which does not mean that it is damaged; check "
            f"its permissions, the disk and the mount, then run the same command again"
        ) from error


# A URL, also one of whose slashes `Path` has kept only one. One letter alone is a drive of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?=/|$)")


def require_local(path: Path | str, kind: str) -> None:
    """Raise StoreError for a URL, which would become a folder of this machine with a strange name."""
    if match := _URL.match(str(path)):
        raise StoreError(
            f"{kind} must be on a local or mounted disk, and cannot be at a URL ({match[0]}//…); name a folder. One "
            f"that is really called {match[0]} can be given by its absolute path"
        )


@contextmanager
def disk_errors(action: str, state: str = "nothing stored before was changed") -> Iterator[None]:
    """Raise errors of a full, read-only or failing disk as StoreError: "could not <action>: <reason>; <state>".

    Parameters
    ----------
    state : what is known then about the change
    """
    try:
        yield
    except OSError as e:
        raise StoreError(f"could not {action}: {e.strerror or e}; {state}. {_advice(e)}") from e


def _advice(error: OSError) -> str:
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return "A folder is where a file should be, or the other way round; choose another name"
    if error.errno in _LACKING | {errno.EEXIST}:
        return "The file system lacks an operation that clipfake needs; choose another disk"
    if error.errno == errno.ENOENT:
        return "Another process has removed it meanwhile; run the same command again when no other process writes there"
    return "Free disk space or give write access, then run the same command again"


@contextmanager
def written_aside(
    path: Path, *, exclusive: bool = False, pending: bool = False, check: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` when the block ends without an error.

    Whatever happens in between, `path` is either unchanged or complete.

    Parameters
    ----------
    exclusive : never replace an existing file
    pending : the file does not count before another one refers to it
    check : called right before the file gets its name; nothing changes if it raises

    Raises
    ------
    StoreError
        The disk is full, read-only or failing, or `exclusive` is set and the file exists; nothing was changed.
    Unflushed
        The file has its name, but a power failure may undo that. Not raised if it is `pending`.
    """
    temporary = path.with_name(temporary_name(path.name))
    with disk_errors(f"write {path}"):
        try:
            make_folder(path.parent)
            yield temporary
            flush(temporary)
            if check is not None:
                check()
            _give_name(temporary, path, exclusive=exclusive)
        finally:
            remove_leftover(temporary)
        try:
            flush(path.parent)
        except OSError as e:
            if pending:
                raise
            raise unflushed(path, e) from e


def unflushed(path: Path, error: OSError) -> Unflushed:
    """The error for a file or folder that has its name already, if its parent folder could not be flushed."""
    return Unflushed(
        f"{path} was written, but the disk failed to flush it ({error.strerror or error}): it may or may not be there "
        f"after a power failure. Check the disk, then run the same command again"
    )


def _give_name(temporary: Path, path: Path, *, exclusive: bool) -> None:
    """Rename a file; with `exclusive`, raise StoreError if another file has the name."""
    try:
        if exclusive:
            _link_new(temporary, path)
        else:
            temporary.replace(path)
    except FileNotFoundError as e:
        raise StoreError(
            f"{temporary} was removed before it became {path.name}, probably by another process that writes there; "
            f"nothing stored before was changed. Run the same command again when no other process writes there"
        ) from e


def _link_new(temporary: Path, path: Path) -> None:
    """Give a file its final name unless another file has it."""
    try:
        os.link(temporary, path)
    except FileExistsError as e:
        if not temporary.samefile(path):  # it is if a network mount repeated a request whose answer was lost
            raise _exists(path) from e
    except OSError as e:
        if e.errno not in _WITHOUT_LINKS:
            raise
        if path.exists():
            raise _exists(path) from e
        temporary.replace(path)


def _exists(path: Path) -> StoreError:
    return StoreError(
        f"{path} exists already: another process has written it meanwhile, and it was not changed; run the same "
        f"command again when no other process writes there"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a regular file; raises only OSError or ValueError, whatever the file contains."""
    try:
        content = json.loads(read_text(path))
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def can_map(path: Path) -> bool:
    """False if the file is on a file system that cannot map files into memory."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ):
            return True
    except (OSError, ValueError) as e:  # other errors are reported by who reads the file
        return not (isinstance(e, OSError) and e.errno in _LACKING)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably, so that they survive a power failure; an existing one is kept."""
    if folder.is_dir():
        return
    require_local(folder, "what is written")
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush(folder.parent)


def reserve(path: Path, size: int) -> None:
    """Extend a file to `size` bytes and allocate them on the disk.

    A full disk would kill a process that writes to a mapped file or through HDF5.
    """
    with path.open("r+b") as file:
        if sys.platform == "darwin":
            file.truncate(size)
        else:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as e:
                if e.errno not in _LACKING:
                    raise
                file.seek(0, os.SEEK_END)
                while (missing := size - file.tell()) > 0:
                    file.write(bytes(min(missing, FILL_BYTES)))


def remove_leftover(path: Path) -> None:
    """Remove a file that nothing refers to any more; one that cannot be removed is left, as it does no harm."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk, unless the file system has no such operation.

    Some network and shared folders do not: there, a power failure may undo the last changes.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        if e.errno not in (_UNFLUSHED_FOLDER if path.is_dir() else _LACKING):
            raise


def write_text(path: Path, text: str, *, exclusive: bool = False, check: Callable[[], None] | None = None) -> None:
    """Write a small text file atomically; see `written_aside`."""
    with written_aside(path, exclusive=exclusive, check=check) as temporary:
        temporary.write_text(text, encoding="utf-8")
