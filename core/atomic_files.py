"""Atomic writes: a temporary file is written, flushed to disk and renamed, and its folder flushed as well.

Errors of the disk are raised as StoreError.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import StoreError

TEMPORARY = ".tmp"  # suffix of temporary files, which a killed writer leaves behind


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Raise errors of a full, read-only or failing disk as StoreError: "could not <action>: <reason>"."""
    try:
        yield
    except OSError as e:
        raise StoreError(
            f"could not {action}: {e.strerror or e}; nothing stored before was changed. "
            f"Free disk space or give write access, then run the same command again"
        ) from e


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` when the block ends without an error.

    Whatever happens in between, `path` is either unchanged or complete.

    Raises
    ------
    StoreError
        The disk is full, read-only or failing.
    """
    # Not named by process id, which may be the same on two hosts.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
    with disk_errors(f"write {path}"):
        try:
            make_folder(path.parent)
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            remove_leftover(temporary)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises only OSError or ValueError, whatever the file contains."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def read_array(path: Path, mode: Literal["r", "r+"] = "r") -> npt.NDArray[Any]:
    """Memory-map a .npy file; raises only OSError or ValueError, whatever the file contains. Never unpickles."""
    try:
        with np.errstate(over="raise"):  # for a shape whose product overflows
            array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as e:  # numpy parses the header as Python, which can raise anything
        raise ValueError(str(e) or type(e).__name__) from e
    if not isinstance(array, np.ndarray):
        raise ValueError("expected one array, found an archive of several")
    return array


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably, so that they survive a power failure; an existing one is kept."""
    if folder.is_dir():
        return
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
            os.posix_fallocate(file.fileno(), 0, size)


def remove_leftover(path: Path) -> None:
    """Remove a file that nothing refers to any more; one that cannot be removed is left, as it does no harm."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with written_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
