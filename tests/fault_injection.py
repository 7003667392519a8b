"""Failing what a change asks of the system, call by call: for a full disk once, for a killed process from then on."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pytest

# What a commit asks of the system: each is failed on its first, second, … use.
CALLS = [
    (os, "open"),
    (os, "fsync"),
    (os, "replace"),
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
    (np, "save"),
    (shutil, "rmtree"),
]


class Killed(BaseException):
    """The process is gone: nothing that comes after happens either."""


class Faults:
    """Counts the calls of CALLS and fails the n-th: once for a full disk, from then on for a killed process."""

    def __init__(self, fail_at: int, kill: bool) -> None:
        self.made, self.fail_at, self.kill = 0, fail_at, kill

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if _only_reads(args):
                return call(*args, **options)
            self.made += 1
            if self.kill and self.made >= self.fail_at:
                raise Killed
            if self.made == self.fail_at:
                if options.get("ignore_errors"):
                    return None
                raise OSError(28, "No space left on device")
            return call(*args, **options)

        return counted


def _only_reads(args: tuple[Any, ...]) -> bool:
    """Whether an HDF5 file is opened or closed that nothing is written to: the disk is the same after."""
    if not (args and isinstance(args[0], h5py.File)):
        return False
    if len(args) > 1:  # opened; h5py itself does it again and again, by number
        return args[2:3] != ("r+",)
    return not args[0] or args[0].mode == "r"


def calls_of(change: Callable[[], object]) -> int:
    """How many calls a change makes that nothing disturbs."""
    with failing(10**9, kill=False) as faults:
        change()
    return faults.made


@contextmanager
def failing(fail_at: int, *, kill: bool) -> Iterator[Faults]:
    faults = Faults(fail_at, kill)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, faults.wrapped(getattr(owner, name)))
        yield faults
