"""One writer at a time. The kernel holds the lock, so a dead writer's is gone with it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import Locked, StoreError

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
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)
