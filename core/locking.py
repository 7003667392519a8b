"""Locks: one writer at a time, and leases on snapshots. The kernel releases the locks of a process that dies.

On a file system without `flock`, a file that exists while a writer holds the store takes its place. It remains when the
writer is killed, and there are no leases. Where `flock` fails only for some processes, each kind of lock respects the
other: both files name their holder.

A lock can be lost: its file is removed, or `flock` excludes only processes of the same machine. A writer finds that out
by `WriterLock.require_held`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import Locked, StoreError
from .atomic_files import remove_leftover

NAME = "lock"
HELD = "lock.held"  # exists while a writer without `flock` holds the store
TEXT_BYTES = 200  # read of a lock file
PATIENCE = 10.0  # seconds for which `folder_lock` waits
_NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not block


@dataclass(frozen=True)
class WriterLock:
    """The writer lock of a store, which this process holds."""

    path: Path  # of the lock file: `lock`, or `lock.held` where `flock` fails
    handle: int  # of the lock file, which stays open
    text: bytes  # what this process wrote in the lock file

    @property
    def folder(self) -> Path:
        return self.path.parent

    def require_held(self) -> None:
        """Raise Locked or StoreError unless this process is the only writer. Call it right before each commit.

        A lock is lost when its file is removed or replaced, and when another process writes its name there: the file
        locks of some network mounts exclude only processes of the same machine. Where they fail now and then, one
        writer may hold `lock` and another one `lock.held`.
        """
        held = self.folder / HELD
        if self.path != held and held.exists():
            raise _held(held)
        if loss := self._loss():
            raise StoreError(
                f"{self.path} {loss} while this process was writing, so that another one may write too; nothing more "
                f"was stored. Run the same command again when no other process writes there"
            )

    def is_held(self) -> bool:
        """True if `require_held` raises nothing."""
        return not self._loss() and (self.path.name == HELD or not (self.folder / HELD).exists())

    def _loss(self) -> str:
        """What has happened to the lock file; "" if it is still this process's."""
        try:
            # opened again, as network mounts ask for the current content only then
            current = os.open(self.path, os.O_RDONLY | _NO_LINK)
        except FileNotFoundError:
            return "was removed"
        except OSError as e:
            return f"became unreadable ({e.strerror})"
        try:
            if not os.path.samestat(os.fstat(current), os.fstat(self.handle)):
                return "was replaced"
            text = os.pread(current, TEXT_BYTES, 0)
        except OSError as e:
            return f"became unreadable ({e.strerror})"
        finally:
            os.close(current)
        if text != self.text:
            return f"was written by {_name(text) or 'another process'}"
        return ""


@contextmanager
def writer_lock(folder: Path) -> Iterator[WriterLock]:
    """Hold the writer lock of a folder.

    Raises
    ------
    Locked
        Another process holds the lock; raised at once, with the name of the holder.
    StoreError
        The folder is not writable, or its lock file is a link or no regular file.
    """
    path = folder / NAME
    handle = _open_lock(path, os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = _holder(handle) or "another process"
            raise Locked(f"{folder} is being written by {holder}; wait for it to end, or stop it") from e
        except OSError:  # some network mounts
            with _held_file(folder / HELD) as lock:
                # Only now: of two writers that start together, at least one sees the other.
                if holder := _holder(handle):
                    raise _named(path, holder) from None
                yield lock
            return
        lock = WriterLock(path, handle, _write_name(handle))
        try:
            lock.require_held()
            yield lock
        finally:
            if not lock._loss():
                with suppress(OSError):
                    os.ftruncate(handle, 0)
    finally:
        _unlock(handle)


def _open_lock(path: Path, flag: int) -> int:
    """Open or create a lock file. A stranger's link there could name any file of the user, which would be emptied."""
    try:
        handle = os.open(path, os.O_RDWR | flag | _NO_LINK, 0o666)
    except FileExistsError:
        raise
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise _no_lock_file(path) from e
        raise StoreError(
            f"cannot write to {path.parent}: {e.strerror}; give write access or use another --store"
        ) from e
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_lock_file(path)
    return handle


def _no_lock_file(path: Path) -> StoreError:
    return StoreError(f"{path} is a link or no regular file, so that it cannot be the lock of a store; remove it")


def _write_name(handle: int) -> bytes:
    """Write this process's name in its lock file; returns what the file holds then."""
    with suppress(OSError):  # a full disk must not prevent deletion
        os.ftruncate(handle, 0)
        os.pwrite(handle, _own_name(), 0)
        os.fsync(handle)  # for other machines that mount this folder
    with suppress(OSError):
        return os.pread(handle, TEXT_BYTES, 0)
    return b""


def _own_name() -> bytes:
    """Name of this process for messages, and a number that no other writer has, also one of the same name elsewhere."""
    return f"process {os.getpid()} on {socket.gethostname()}, writer {secrets.token_hex(4)}".encode()


def _name(text: bytes) -> str:
    """The name of a process in the text of a lock file; "" for none."""
    return text.decode(errors="replace").split(", writer ")[0].strip(" \n\0")


def _holder(handle: int) -> str:
    """The name of the process that a lock file names; "" for none."""
    return _name(os.pread(handle, TEXT_BYTES, 0))


@contextmanager
def _held_file(path: Path) -> Iterator[WriterLock]:
    """Exclude other writers by a file that only one of them can create; raises Locked or StoreError."""
    try:
        handle = _open_lock(path, os.O_CREAT | os.O_EXCL)
    except FileExistsError as e:
        raise _held(path) from e
    try:
        lock = WriterLock(path, handle, _write_name(handle))
        try:
            yield lock
        finally:
            if not lock._loss():
                remove_leftover(path)
    finally:
        os.close(handle)


def _held(path: Path) -> Locked:
    """The error for a store that a writer without `flock` holds. A process here cannot know whether it still runs."""
    holder = "another process"
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | _NO_LINK)
        try:
            holder = _holder(handle) or holder
        finally:
            os.close(handle)
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


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Exclude other processes while a few files of a folder are replaced; raises Locked after `PATIENCE` seconds.

    On a file system without locks on folders, nobody is excluded.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + PATIENCE
        with suppress(OSError):
            while not _try_lock(handle):
                if time.monotonic() > until:
                    raise Locked(f"another process has been writing to {folder} for {PATIENCE:g} seconds; wait for it")
                time.sleep(0.05)
        yield
    finally:
        _unlock(handle)


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
