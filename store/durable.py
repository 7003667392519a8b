"""Files that are whole or absent: written aside, flushed to the disk, renamed, and the folder flushed too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StoreError

TEMPORARY = ".tmp"  # what a leftover of a killed writer ends in


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends well the file there becomes `path`.

    Whatever happens in between, `path` is either what it was before or whole. A full or read-only disk is a
    StoreError that names the file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as e:
        raise StoreError(
            f"could not write {path}: {e.strerror or e}; nothing stored before was changed. "
            f"Make room or give write access, then run the same command again"
        ) from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
