"""Writer lock and snapshot leases, with and without file locks, and readers without write access."""

import errno
import fcntl
import mmap
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.core import locking
from clipfake.core.atomic_files import reserve
from clipfake.errors import Locked, StoreError, Unreadable
from clipfake.store import snapshot as snapshots
from clipfake.store.maintenance import verify as checking
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors
from clipfake.store.shard import Shard, _empty, write_shard
from clipfake.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "s", space(4))
    with store.writer() as writer:
        for block in synthetic(60, 4):
            writer.append(block)
    return store


NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO, errno.EINVAL]


@pytest.mark.parametrize("error", NO_LOCKS, ids=errno.errorcode.get)
def test_one_writer_at_a_time_without_file_locks(store: Store, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(fcntl, "flock", failing_with(error))
    with store.writer() as writer:
        writer.delete(np.arange(60) < 5)
        with pytest.raises(Locked, match=rf"process {os.getpid()} on .* remove that file"), store.writer():
            pass
        with monkeypatch.context() as locks:  # a machine that has locks respects it too
            locks.undo()
            with pytest.raises(Locked, match=f"process {os.getpid()} on"), store.writer():
                pass
        assert len(store.snapshot().vectors()) == 55  # reading needs no lock
    assert verify(store.folder).sound
    with store.writer():
        pass


def test_file_left_by_a_killed_writer_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing_with(errno.ENOLCK))
    left = store.folder / "lock.held"
    left.write_text("process 1 on elsewhere")
    with pytest.raises(Locked, match=f"process 1 on elsewhere.*{left}"), store.writer():
        pass
    left.unlink()
    with store.writer():
        pass


def test_writer_without_locks_respects_one_with_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.writer() as writer:
        with monkeypatch.context() as locks:
            locks.setattr(fcntl, "flock", failing_with(errno.EIO))
            with pytest.raises(Locked, match=rf"process {os.getpid()} on .*/lock, .* empty that file"), store.writer():
                pass
        writer.delete(np.arange(60) < 5)
    monkeypatch.setattr(fcntl, "flock", failing_with(errno.EIO))
    with store.writer() as writer:  # the first one has removed its name
        assert len(writer.snapshot) == 55


@pytest.mark.parametrize("change", ["rows", "named vectors"])
def test_commit_is_refused_while_another_writer_holds_the_store(store: Store, change: str) -> None:
    held, number = store.folder / "lock.held", store.snapshot().number
    with pytest.raises(Locked, match=f"process 7 on elsewhere.*{held}"):
        if change == "rows":
            with store.writer() as writer:
                held.write_text("process 7 on elsewhere")
                writer.delete(np.arange(60) < 5)
        else:
            with named_vectors_writer(store.folder, "other", space(4)) as vectors:
                vectors.put(np.arange(60), vectors.snapshot.vectors())
                held.write_text("process 7 on elsewhere")
    held.unlink()
    assert store.snapshot().number == number
    with store.writer():  # and the refused writer holds nothing any more
        text = (store.folder / "lock").read_text()
        assert re.fullmatch(rf"process {os.getpid()} on {socket.gethostname()}, writer [0-9a-f]{{8}}", text)
    assert (store.folder / "lock").read_text() == ""


def test_removal_of_lock_held_stops_its_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing_with(errno.ENOLCK))
    with pytest.raises(StoreError, match=r"lock\.held was removed while this"), store.writer() as writer:
        (store.folder / "lock.held").unlink()
        writer.delete(np.arange(60) < 5)
    assert len(store.snapshot()) == 60


def failing_with(error: int) -> Any:
    """A system call that always fails with this error."""

    def call(*args: Any, **options: Any) -> None:
        raise OSError(error, os.strerror(error))

    return call


NO_FLUSH = [errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.ENOSYS]


@pytest.mark.parametrize("error", NO_FLUSH, ids=errno.errorcode.get)
def test_folders_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    store = Store.create(tmp_path / "s", space(4))
    with store.writer() as writer:
        writer.append(next(iter(synthetic(20, 4))))
    assert verify(store.folder).sound


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_failing_flush_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(os, "fsync", failing_with(error))
    with pytest.raises(StoreError, match=re.escape(os.strerror(error))):
        Store.create(tmp_path / "s", space(4))


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS], ids=errno.errorcode.get)
def test_space_is_filled_if_not_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing_with(error))
    (tmp_path / "file").write_bytes(b"begin")
    reserve(tmp_path / "file", 3 << 20)
    content = (tmp_path / "file").read_bytes()
    assert (len(content), content.rstrip(b"\0")) == (3 << 20, b"begin")
    assert (tmp_path / "file").stat().st_blocks * 512 >= 3 << 20


def test_files_that_cannot_be_mapped_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(store, "plain")
    with named_vectors_writer(store.folder, "other", space(4)) as writer:
        writer.put(np.arange(60), writer.snapshot.vectors())
    expected = store.snapshot().vectors()
    monkeypatch.setattr(mmap, "mmap", failing_with(errno.ENODEV))
    snapshot = store.snapshot()
    assert np.array_equal(snapshot.vectors(), expected)
    assert snapshot.search(expected[:3], 1).rows.tolist() == [[0], [1], [2]]
    assert np.array_equal(open_named_vectors(store.folder, "other").vectors(snapshot, np.arange(60)), expected)
    assert verify(store.folder).sound


UNREADABLE = ["shards/000001.h5", "snapshots/000001.json", "indexes/knn-000001/index.json", "columns/other/column.json"]


NO_READING = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ECONNRESET, errno.EDEADLK, errno.ENODATA, 127]


@pytest.mark.parametrize("error", NO_READING, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_is_not_called_damaged(store: Store, monkeypatch: pytest.MonkeyPatch, name: str, error: int) -> None:
    build_index(store, "plain")
    with named_vectors_writer(store.folder, "other", space(4)) as writer:
        writer.put(np.arange(60), writer.snapshot.vectors())
    real, real_h5 = os.open, h5py.File.__init__
    refused = failing_with(error)

    def open_file(path: Any, *args: Any, **options: Any) -> Any:
        return refused() if Path(path) == store.folder / name else real(path, *args, **options)

    def open_h5(file: Any, path: Any, *args: Any, **options: Any) -> None:
        refused() if path == store.folder / name else real_h5(file, path, *args, **options)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(h5py.File, "__init__", open_h5)
    for check in (verify, repair):
        with pytest.raises(Unreadable, match=rf"{name} cannot be read now \(.*does not mean that it is damaged"):
            check(store.folder)
    monkeypatch.undo()
    assert verify(store.folder).sound


@pytest.mark.parametrize("error", [errno.EUCLEAN, errno.EBADMSG], ids=errno.errorcode.get)
def test_damage_found_by_the_file_system_is_damage(store: Store, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(h5py.File, "__init__", failing_with(error))
    [problem] = verify(store.folder).problems
    assert (problem.path, problem.lost) == ("shards/000001.h5", 60)


def test_repair_loses_no_rows_of_a_shard_it_cannot_read_now(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard is in no readable manifest, so that `verify` does not read it."""
    rows, real = store.snapshot().vectors(), h5py.File.__init__
    (store.folder / "snapshots/000001.json").write_text("{")

    def open_h5(file: Any, path: Any, *args: Any, **options: Any) -> None:
        if args[:1] == ("r",):
            failing_with(errno.ECONNRESET)()
        real(file, path, *args, **options)

    monkeypatch.setattr(h5py.File, "__init__", open_h5)
    with pytest.raises(Unreadable, match=r"000001.h5"):
        repair(store.folder)
    monkeypatch.undo()
    assert repair(store.folder).rows == 60
    assert np.array_equal(store.snapshot().vectors(), rows)


def test_compact_loses_no_vectors_it_cannot_read_now(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with named_vectors_writer(store.folder, "other", space(4)) as vectors:
        vectors.put(np.arange(60), vectors.snapshot.vectors())
    with store.writer() as writer:
        writer.delete(np.arange(60) < 5)
    real = os.open

    def open_file(path: Any, *args: Any, **options: Any) -> Any:
        return failing_with(errno.ECONNRESET)() if Path(path).name == "column.json" else real(path, *args, **options)

    monkeypatch.setattr(os, "open", open_file)
    with pytest.raises(Unreadable, match=r"column.json"):
        compact(store, grace=timedelta(0))
    monkeypatch.undo()
    compact(store, grace=timedelta(0))
    assert not open_named_vectors(store.folder, "other").missing(store.snapshot()).any()


def test_read_only_store_can_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", read_only)
    for change in (
        lambda: store.writer().__enter__(),
        lambda: compact(store, grace=timedelta(0)),
        lambda: store.undo(0),
    ):
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


def test_lock_excludes_other_processes_until_they_die(store: Store) -> None:
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


def test_reader_keeps_its_snapshot_during_compaction(store: Store) -> None:
    held = store.snapshot()
    before = held.vectors()
    with store.writer() as writer:
        writer.delete(held.column("labels") == 1)
    compact(store, grace=timedelta(0))
    assert (held.vectors() == before).all()
    assert len(store.snapshot()) == int((held.column("labels") == 0).sum())
    with pytest.raises(StoreError, match="has no snapshot"):
        store.undo(0)


def test_reader_cannot_lease_a_snapshot_during_its_removal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the reader would assume that the files stay."""
    tried = []

    def unlink_with_reader(path: Path, *args: Any, real: Any = os.unlink, **options: Any) -> None:
        if Path(path).name == "000000.json":
            handle = os.open(path, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(handle)
            tried.append(path)
        real(path, *args, **options)

    monkeypatch.setattr(os, "unlink", unlink_with_reader)
    compact(store, grace=timedelta(0))
    assert len(tried) == 1


def test_reader_of_a_removed_snapshot_opens_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def lease_with_writer(manifest: Path, holder: object, real: Any = locking.lease) -> bool:
        monkeypatch.undo()
        with store.writer() as writer:
            writer.delete([True] + [False] * 59)  # type: ignore[arg-type]
        compact(store, grace=timedelta(0))
        return bool(real(manifest, holder))

    monkeypatch.setattr(snapshots, "lease", lease_with_writer)
    held = store.snapshot()
    assert (len(held), held.number) == (59, store.snapshots()[-1].number)
    assert len(held.vectors()) == 59


def test_forked_child_does_not_keep_the_lock(store: Store) -> None:
    with store.writer():
        listed = [path.name for path in Path("/dev/fd").iterdir()]
        [handle] = {int(fd) for fd in listed if is_lock_of(int(fd), store)}
        childs = os.dup(handle)  # as a forked child would have it
    try:
        with store.writer() as writer:
            assert len(writer.snapshot) == 60
    finally:
        os.close(childs)


def is_lock_of(handle: int, store: Store) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), (store.folder / "lock").stat())
    except OSError:
        return False


def test_concurrent_writes_are_not_reported_as_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer commits, removes snapshots and compacts during verification."""

    def check_with_writer(folder: Path, *more: Any, real: Any = checking.check_shard) -> Any:
        monkeypatch.undo()
        with store.writer() as writer:
            writer.delete(np.arange(60) < 5)
        with store.writer() as writer:
            writer.delete(np.arange(55) < 5)
        compact(store, grace=timedelta(0))
        return real(folder, *more)

    monkeypatch.setattr(checking, "check_shard", check_with_writer)
    assert verify(store.folder).problems == ()
    assert verify(store.folder).rows == 50


def test_threads_write_shards_concurrently(tmp_path: Path) -> None:
    _empty.cache_clear()
    blocks = [*synthetic(200, 4, size=10)]
    with ThreadPoolExecutor(8) as pool:
        sealed = list(
            pool.map(lambda number: write_shard(tmp_path / f"{number}.h5", blocks[number]), range(len(blocks)))
        )
    assert [header.rows for header in sealed] == [len(block) for block in blocks]
    assert [Shard(tmp_path / f"{number}.h5").header for number in range(len(blocks))] == sealed
