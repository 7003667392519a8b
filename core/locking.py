"""Locks: one writer at a time, and leases on snapshots. The kernel releases the locks of a process that dies.

On a file system without `flock`, a file that exists while a writer holds the store takes its place. It remains when the
writer is killed, and there are no leases. Where `flock` fails only for some processes, each kind of lock respects the
other: both files name their holder.
"""

from __future__ import annotations

import fcntl
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import Locked, StoreError
from .atomic_files import remove_leftover

NAME = "lock"
HELD = "lock.held"  # exists while a writer without `flock` holds the store


@dataclass(frozen=True)
class WriterLock:
    """The writer lock of a store, which this process holds."""

    folder: Path
    by_file: bool  # held by `lock.held`, since `flock` failed

    def require_held(self) -> None:
        """Raise Locked or StoreError if another process writes too. Call it before each commit.

        On a file system whose locks fail now and then, one writer may hold `lock` and another one `lock.held`.
        """
        path = self.folder / HELD
        if self.by_file and not path.exists():
            raise StoreError(
                f"{path} was removed while this process was writing, so that another one may write too; nothing more "
                f"was stored. Run the same command again"
            )
        if not self.by_file and path.exists():
            raise _held(path)


@contextmanager
def writer_lock(folder: Path) -> Iterator[WriterLock]:
    """Hold the writer lock of a store.

    Raises
    ------
    Locked
        Another process holds the lock; raised at once, with the name of the holder.
    StoreError
        The folder is not writable.
    """
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as e:
        raise StoreError(f"cannot write to {folder}: {e.strerror}; give write access or use another --store") from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = _holder(handle) or "another process"
            raise Locked(f"{folder} is being written by {holder}; wait for it to end, or stop it") from e
        except OSError:  # some network mounts
            with _held_file(folder / HELD):
                # Only now: of two writers that start together, at least one sees the other.
                if holder := _holder(handle):
                    raise _named(path, holder) from None
                yield WriterLock(folder, by_file=True)
            return
        try:
            with suppress(OSError):  # a full disk must not prevent deletion
                os.ftruncate(handle, 0)
                os.pwrite(handle, _own_name(), 0)
                os.fsync(handle)  # for other machines that mount this folder
            lock = WriterLock(folder, by_file=False)
            lock.require_held()
            yield lock
        finally:
            with suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        _unlock(handle)


def _own_name() -> bytes:
    return f"process {os.getpid()} on {socket.gethostname()}".encode()


def _holder(handle: int) -> str:
    """The name of the process that a lock file names; "" for none."""
    return os.pread(handle, 200, 0).decode(errors="replace").strip()


@contextmanager
def _held_file(path: Path) -> Iterator[None]:
    """Exclude other writers by a file that only one of them can create; raises Locked or StoreError."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError as e:
        raise _held(path) from e
    except OSError as e:
        raise StoreError(f"cannot write to {path.parent}: {e.strerror}; choose another --store") from e
    try:
        try:
            with suppress(OSError):  # the name is only for messages
                os.write(handle, _own_name())
        finally:
            os.close(handle)
        yield
    finally:
        remove_leftover(path)


def _held(path: Path) -> Locked:
    """The error for a store that a writer without `flock` holds. A process here cannot know whether it still runs."""
    holder = "another process"
    with suppress(OSError):
        holder = path.read_text(errors="replace")[:200].strip() or holder
    return Locked(
        f"{path.parent} is being written by {holder}; wait for it to end. If it was killed, it left {path} behind, "
        f"since this file system has no locks that end with a process: remove that file"
    )


def _named(path: Path, holder: str) -> Locked:
    """The error of a writer without `flock` for a lock file that names the holder of a lock."""
    return Locked(
        f"{path.parent} is being written by {holder}; wait for it to end. If it was killed, it left its name in "
        f"{path}, and whether it runs cannot be found out, since locks fail here: empty that file"
    )


def lease(manifest: Path, holder: object) -> bool:
    """Keep a snapshot's files from being removed while `holder` exists, if the file system supports locks.

    Returns False if the snapshot has been removed in the meantime; the caller should then open the newest one.
    """
    with suppress(OSError):
        handle = os.open(manifest, os.O_RDONLY)
        weakref.finalize(holder, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH)  # may wait for a moment, while a writer removes the manifest
    return manifest.exists()


def remove_unless_leased(manifest: Path) -> bool:
    """Remove a snapshot's manifest unless a reader in any process has a lease on it; returns True if it is gone.

    The manifest stays locked until it is removed, so that a reader opening it in between notices.
    """
    handle = -1
    for access in (os.O_RDWR, os.O_RDONLY):  # NFS locks exclusively only what is open for writing
        with suppress(OSError):
            handle = os.open(manifest, access)
            break
    if handle < 0:
        return not manifest.exists()
    try:
        with suppress(OSError):  # without file locks there are no leases
            if not _try_lock(handle):
                return False
        remove_leftover(manifest)
    finally:
        _unlock(handle)  # readers wait for it
    return not manifest.exists()


def _try_lock(handle: int) -> bool:
    """Lock a file exclusively; False if it is locked already."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(handle: int) -> None:
    """Unlock and close a file. Closing alone would leave it locked if a child forked meanwhile has it open too."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
