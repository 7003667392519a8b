"""Files that are whole or absent: written aside, flushed to the disk, renamed, and the folder flushed too.

What a disk refuses is a StoreError here, so that whoever writes need not think of it.
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

TEMPORARY = ".tmp"  # what a leftover of a killed writer ends in


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """A full, read-only or failing disk as a StoreError: "could not (what): (why)"."""
    try:
        yield
    except OSError as e:
        raise StoreError(
            f"could not {what}: {e.strerror or e}; nothing stored before was changed. "
            f"Make room or give write access, then run the same command again"
        ) from e


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends well the file there becomes `path`.

    Whatever happens in between, `path` is either what it was before or whole. A full or read-only disk is a
    StoreError that names the file.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY}")  # of two hosts, a pid may be the same
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
    """The object in a file of JSON; raises OSError or ValueError, whatever a stranger put there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as e:
        raise ValueError("it is nested too deep") from e
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def read_array(path: Path, mode: Literal["r", "r+"] = "r") -> npt.NDArray[Any]:
    """A numpy file, mapped; raises OSError or ValueError, whatever a stranger put there. Never unpickles."""
    try:
        with np.errstate(over="raise"):  # of a shape whose product is more than a number holds
            found = np.load(path, mmap_mode=mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as e:  # its header is parsed as Python, and raises what that does
        raise ValueError(str(e) or type(e).__name__) from e
    if not isinstance(found, np.ndarray):
        raise ValueError("several arrays in one file")
    return found


def make_folder(folder: Path) -> None:
    """Make a folder, and those it lies in, so that it outlives a power cut; one that is there is left alone."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush(folder.parent)


def reserve(path: Path, size: int) -> None:
    """Lengthen a file to so many bytes that the disk has room for.

    A process that maps a file, or has HDF5 write it, would not survive finding the disk full.
    """
    with path.open("r+b") as file:
        if sys.platform == "darwin":
            file.truncate(size)
        else:
            os.posix_fallocate(file.fileno(), 0, size)


def remove_leftover(path: Path) -> None:
    """Remove a file that nothing names any more; one that cannot be removed is in nobody's way."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """A small text file, whole or absent."""
    with written_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
