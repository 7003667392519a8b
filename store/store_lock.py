"""The writer lock of a store. Whoever takes it withdraws what other writers were about to commit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.atomic_files import disk_errors
from ..core.locking import WriterLock, writer_lock

# Files that `written_aside` is about to rename to a manifest, or to a list of named vectors.
_BEGUN = re.compile(r"(\d{6,}|column)\.json\.[0-9a-f]{12}\.tmp")


@contextmanager
def store_lock(folder: Path) -> Iterator[WriterLock]:
    """Hold the writer lock of a store.

    Another writer may still run that has lost its lock. It commits by renaming a temporary file after it has checked
    its lock. If it checked before this process took the lock, it has either committed before the temporary files are
    removed here, so that its rows are seen, or it cannot commit any more.

    Raises
    ------
    Locked
        Another process holds the lock; raised at once.
    StoreError
        The folder is not writable.
    """
    with writer_lock(folder) as lock:
        with disk_errors(f"write to {folder}"):
            for path in _begun_commits(folder):
                path.unlink(missing_ok=True)
        yield lock


def _begun_commits(folder: Path) -> Iterator[Path]:
    yield from _begun_in(folder / "snapshots")
    for column in _entries(folder / "columns"):
        if column.is_dir(follow_symlinks=False):
            yield from _begun_in(Path(column.path))


def _begun_in(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if _BEGUN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder; none if it is a link, or does not exist."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)
