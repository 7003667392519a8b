"""One writer at a time, and readers whose snapshot stays. The kernel holds the locks: a dead process's are gone."""

from __future__ import annotations

import fcntl
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Locked, StoreError
from .atomic_files import remove_leftover

NAME = "lock"


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the store's writer lock, or raise Locked at once, naming the holder.

    On a file system that cannot lock (some network mounts) this is a StoreError: better no writer than two.
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
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise Locked(f"{folder} is being written by {holder}; wait for it to end, or stop it") from e
        except OSError as e:
            raise StoreError(
                f"{folder} lies on a file system that cannot lock files ({e.strerror}); "
                f"two writers could not be kept apart there, so put the store on a local disk"
            ) from e
        with suppress(OSError):  # who holds it is told for people; a full disk is no reason not to delete
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
        with suppress(OSError):
            os.ftruncate(handle, 0)
    finally:
        _let_go(handle)


def lease(manifest: Path, holder: object) -> bool:
    """Keep a snapshot's files from being tidied away while `holder` lives; where files cannot be locked, hope.

    False if the snapshot was given up meanwhile: then go on to the next.
    """
    with suppress(OSError):
        handle = os.open(manifest, os.O_RDONLY)
        weakref.finalize(holder, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH)  # who gives it up holds it for an instant
    return manifest.exists()


def give_up(manifest: Path) -> bool:
    """Remove a snapshot's manifest unless a reader, of this process or another, has the snapshot.

    It stays locked until it is gone: a reader who comes in between finds that it is.
    """
    try:
        handle = os.open(manifest, os.O_RDONLY)
    except OSError:
        return not manifest.exists()
    try:
        with suppress(OSError):  # where files cannot be locked nobody has one
            if not _alone(handle):
                return False
        remove_leftover(manifest)
    finally:
        _let_go(handle)  # readers wait for it
    return not manifest.exists()


def _alone(handle: int) -> bool:
    """Lock a file for oneself; False where another has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go(handle: int) -> None:
    """Close a locked file; a child that was forked meanwhile has it open too, and would go on holding the lock."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
