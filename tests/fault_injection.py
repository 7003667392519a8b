"""Fault injection: the n-th system call of a change fails, as on a full disk or when the process is killed.

Or the change is paused there, while another process does what it likes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import h5py
import pytest
from clipfake.store.exchange import export_rows
from clipfake.store.maintenance import build_index

# The system calls of a commit. Tests fail the first call of a change, then the second, and so on.
CALLS = [
    (os, "open"),
    (os, "fsync"),
    (os, "replace"),
    (os, "link"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "rename"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (os, "posix_fallocate"),
    (h5py.File, "__init__"),
    (h5py.Group, "create_dataset"),
    (h5py.AttributeManager, "__setitem__"),
    (h5py.File, "close"),
    (faiss, "write_index"),
    (build_index, "write_npy"),
    (export_rows, "write_npy"),
    (shutil, "rmtree"),
]


class Killed(BaseException):
    """Stands for the end of the process: all later calls fail too."""


class Faults:
    """Counts the calls in CALLS and fails the n-th: once for a full disk, with all later ones for a killed process.

    With `meanwhile`, the n-th call does not fail; `meanwhile` is called before it, and its calls are not counted.
    """

    def __init__(self, fail_at: int, kill: bool, meanwhile: Callable[[], object] | None = None) -> None:
        self.count, self.fail_at, self.kill, self.meanwhile = 0, fail_at, kill, meanwhile
        self.paused = False

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.paused or _only_reads(args):
                return call(*args, **options)
            self.count += 1
            if self.meanwhile and self.count == self.fail_at:
                self.paused = True
                self.meanwhile()
                self.paused = False
                return call(*args, **options)
            if self.kill and self.count >= self.fail_at:
                raise Killed
            if self.count == self.fail_at:
                if options.get("ignore_errors"):
                    return None
                raise OSError(28, "No space left on device")
            return call(*args, **options)

        return counted


def _only_reads(args: tuple[Any, ...]) -> bool:
    """Return True if the call opens or closes an HDF5 file without writing to it, so that the disk does not change."""
    if not (args and isinstance(args[0], h5py.File)):
        return False
    if len(args) > 1:  # opened; h5py itself also opens files by their number
        return args[2:3] != ("r+",)
    return not args[0] or args[0].mode == "r"


def calls_of(change: Callable[[], object]) -> int:
    """Number of calls that a change makes if none of them fails."""
    with failing(10**9, kill=False) as faults:
        change()
    return faults.count


@contextmanager
def failing(fail_at: int, *, kill: bool, meanwhile: Callable[[], object] | None = None) -> Iterator[Faults]:
    faults = Faults(fail_at, kill, meanwhile)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, faults.wrapped(getattr(owner, name)))
        yield faults
