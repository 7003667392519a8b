"""The folders of a store, opened without following links, and removal of clipfake's own files in them.

A store may come from a stranger: a link in it must not lead a write or a removal to a folder outside, and a file that
clipfake has not written is never removed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.atomic_files import final_name, require_readable
from ..core.locking import NAME as LOCK
from ..core.locking import WriterLock, writer_lock
from ..errors import Linked, NotAStore, StoreError

# Everything in a store that clipfake writes or removes; anything beside it belongs to somebody else.
ROOMS = ("snapshots", "shards", "deleted", "columns", "indexes", "heads", "incoming", "quarantine")
SINGLE_FILES = (LOCK, "lock.held", "quarantine.json")

# Names of clipfake's files, by room. Files of any other name are not removed.
SNAPSHOTS = re.compile(r"([0-9]{6}|[1-9][0-9]{6,17})\.json")
SHARDS = re.compile(r"[0-9]{6,9}\.h5")
TOMBSTONES = re.compile(r"[0-9]{6,9}-[0-9]{6,18}\.u4")
NAMED_VECTORS = re.compile(r"[0-9]{6,9}-[0-9a-f]{12}\.f2|view\.safetensors|column\.json")
INDEX_FILES = re.compile(r"-?[0-9]+\.(faiss|ids\.npy|cells\.npy)|index\.json")
OWN_NAMES = {"snapshots": SNAPSHOTS, "shards": SHARDS, "deleted": TOMBSTONES}


def is_temporary(name: str, own: re.Pattern[str]) -> bool:
    """True for the temporary name of a file whose final name matches a pattern."""
    return bool(own.fullmatch(final_name(name)))


def links(folder: Path) -> list[Path]:
    """Symbolic links in a store, at any depth. The store's own folder may be reached by one."""
    found: list[Path] = []
    for name in (*SINGLE_FILES, *ROOMS):
        path = folder / name
        if path.is_symlink():
            found.append(path)
        elif name in ROOMS:
            _collect_links(path, found)
    return found


def _collect_links(folder: Path, found: list[Path]) -> None:
    """Append the links below a folder; nothing for a folder that is missing or cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                found.append(folder / entry.name)
            elif entry.is_dir(follow_symlinks=False):
                _collect_links(folder / entry.name, found)


def require_unlinked(folder: Path) -> None:
    """Raise Linked if anything in a store is a symbolic link."""
    for path in links(folder):
        raise Linked(
            f"{path} is a symbolic link, and nothing in a store may be one: what is written or removed there would be "
            f"outside the store. If the store is yours, replace the link by what it leads to; otherwise do not use it"
        )


@contextmanager
def store_lock(folder: Path) -> Iterator[WriterLock]:
    """Hold the writer lock of a store that has no links.

    Another writer may still run that has lost its lock. It commits by renaming a temporary file after it has checked
    its lock. If it checked before this process took the lock, it has either committed before the temporary files are
    removed here, so that its rows are seen, or it cannot commit any more.

    Raises
    ------
    Linked
        Something in the store is a symbolic link.
    NotAStore
        The file `lock` is not clipfake's.
    Locked, StoreError
        See `writer_lock`.
    """
    require_unlinked(folder)
    _require_own_lock(folder / LOCK)
    with writer_lock(folder) as lock:
        _withdraw(folder, "snapshots", own=SNAPSHOTS)
        for name in own_folders(folder, "columns"):
            _withdraw(folder, "columns", name, own=NAMED_VECTORS)
        yield lock


def _withdraw(folder: Path, *room: str, own: re.Pattern[str]) -> None:
    """Remove the temporary files of commits in a room; raises StoreError if one cannot be removed."""
    remove_temporary_files(folder, *room, own=own)
    if begun := [name for name in own_files(folder, *room, own=own) if is_temporary(name, own)]:
        raise StoreError(f"{folder.joinpath(*room, begun[0])} cannot be removed; remove it, then run the command again")


def _require_own_lock(path: Path) -> None:
    """Raise NotAStore if the lock file is another file, perhaps by a hard link: its content would be replaced."""
    try:
        status = path.lstat()
        own = stat.S_ISREG(status.st_mode) and (not status.st_size or path.read_bytes()[:8] == b"process ")
    except OSError:
        return  # missing, or reported by `writer_lock`
    if not own:
        raise NotAStore(
            f"{path} is not the lock file of a store, which is empty or names a process; rename it if it is yours, "
            f"while no clipfake process uses this store"
        )


@contextmanager
def _opened(folder: Path, names: tuple[str, ...]) -> Iterator[int]:
    """Descriptor of a folder in a store; raises OSError if it is missing, or if one of the names is a link."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            parent, handle = handle, os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(parent)
        yield handle
    finally:
        os.close(handle)


def _listed(folder: Path, room: tuple[str, ...], keep: Callable[[int, str], bool]) -> list[str]:
    """Names in a room that `keep` selects, sorted; none if the room is missing, or is no folder.

    Parameters
    ----------
    keep : called with the descriptor of the room and a name in it

    Raises
    ------
    Unreadable
        It cannot be listed now. Taken for an empty one, it would bring deleted rows back, or lose whole shards.
    """
    try:
        with _opened(folder, room) as handle:
            return [name for name in _names(handle) if keep(handle, name)]
    except OSError as e:
        require_readable(folder.joinpath(*room), e)
        return []


def own_files(folder: Path, *room: str, own: re.Pattern[str]) -> list[str]:
    """Names of the regular files in a room that match a pattern, or that are temporary files of such a name; sorted.

    Raises
    ------
    Unreadable
        The room cannot be listed now. One that is missing has no files.
    """
    return _listed(folder, room, lambda handle, name: _is_own(handle, name, own))


def own_folders(folder: Path, *room: str) -> list[str]:
    """Names of the folders in a room, sorted; raises Unreadable as `own_files` does."""
    return _listed(folder, room, lambda handle, name: stat.S_ISDIR(_mode(handle, name)))


def foreign_entries(folder: Path, *room: str, own: re.Pattern[str]) -> list[str]:
    """Names of everything else in a room, sorted: files and folders that clipfake has not written."""
    return _listed(folder, room, lambda handle, name: not _is_own(handle, name, own))


def _names(handle: int) -> list[str]:
    with os.scandir(handle) as entries:
        return sorted(entry.name for entry in entries)


def _mode(handle: int, name: str) -> int:
    """Mode of a file or folder, links not followed; 0 for one that was removed meanwhile."""
    try:
        return os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def _is_own(handle: int, name: str, own: re.Pattern[str]) -> bool:
    return bool(own.fullmatch(name) or is_temporary(name, own)) and stat.S_ISREG(_mode(handle, name))


def remove_files(
    folder: Path,
    *room: str,
    own: re.Pattern[str],
    names: Iterable[str] | None = None,
    lock: WriterLock | None = None,
) -> None:
    """Remove clipfake's files in a room, temporary ones too. What cannot be removed is left.

    Parameters
    ----------
    names : of the files to remove (default: all that match the pattern)
    lock : checked before each removal; another writer may be about to name a file that no snapshot names yet

    Raises
    ------
    Locked, StoreError
        The lock was lost.
    """
    with suppress(OSError), _opened(folder, room) as handle:
        for name in _names(handle) if names is None else names:
            if _is_own(handle, name, own):
                if lock is not None:
                    lock.require_held()
                with suppress(OSError):
                    os.unlink(name, dir_fd=handle)


def remove_temporary_files(folder: Path, *room: str, own: re.Pattern[str], lock: WriterLock | None = None) -> None:
    """Remove the temporary files in a room that a killed writer left; see `remove_files`."""
    names = [name for name in own_files(folder, *room, own=own) if is_temporary(name, own)]
    remove_files(folder, *room, own=own, names=names, lock=lock)


def remove_folder(folder: Path, *room: str, own: re.Pattern[str]) -> None:
    """Remove a folder in a store with clipfake's files; it stays if it holds anything else."""
    remove_files(folder, *room, own=own)
    with suppress(OSError), _opened(folder, room[:-1]) as handle:
        os.rmdir(room[-1], dir_fd=handle)
