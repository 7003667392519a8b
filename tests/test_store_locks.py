"""One writer at a time, on disks that can lock and on those that cannot, and readers who may write nothing."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clipfake.benchmarks.store_synthetic import space, synthetic
from clipfake.store.compact import compact
from clipfake.store.errors import Locked, StoreError
from clipfake.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "s", space(4))
    with store.writer() as writer:
        for block in synthetic(60, 4):
            writer.append(block)
    return store


def test_a_file_system_without_locks_is_told_and_nothing_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    before = store.snapshot().number
    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(StoreError, match="cannot lock files"), store.writer():
        pass
    assert store.snapshot().number == before
    assert len(store.snapshot().vectors()) == 60  # reading needs no lock


def test_a_disk_that_cannot_be_written_is_read_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", read_only)
    for change in (lambda: store.writer().__enter__(), lambda: compact(store), lambda: store.undo(0)):
        with pytest.raises(StoreError, match=r"cannot write to .*Read-only file system"):
            change()
    snapshot = store.snapshot()
    assert len(snapshot.vectors()) == 60
    assert snapshot.search(snapshot.vectors([3]), 1).rows.tolist() == [[3]]


HOLD = """
import sys
from clipfake.store.store import Store
with Store.open(sys.argv[1]).writer():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_processs_lock_is_respected_and_a_dead_ones_is_gone(store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"process {other.pid} on"), store.writer():
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with store.writer() as writer:
        assert len(writer.snapshot) == 60


def test_a_reader_keeps_its_snapshot_through_compaction(store: Store) -> None:
    held = store.snapshot()
    before = held.vectors()
    with store.writer() as writer:
        writer.delete(held.column("labels") == 1)
    compact(store)
    assert (held.vectors() == before).all()
    assert len(store.snapshot()) == int((held.column("labels") == 0).sum())
    with pytest.raises(StoreError, match="has no snapshot"):
        store.undo(0)
