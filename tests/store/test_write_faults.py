"""Each system call of a commit fails in turn: the store is then as before or as after the commit, never between."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.errors import BadBlock, ClipfakeError, StoreError, Unflushed, Unreadable
from clipfake.store.exchange.export_rows import LAYOUTS, Layout, export_rows
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors
from clipfake.store.records import Block
from clipfake.store.shard import _KeptErrors
from clipfake.store.store import Store
from fault_injection import Killed, calls_of, failing

DIM = 4
BLOCKS = list(synthetic(60, DIM, size=20))


def prepared(folder: Path) -> Store:
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=20) as writer:
        for block in BLOCKS[:2]:
            writer.append(block)
    return store


def changed(block: Block) -> Block:
    rows = block.rows.take(slice(None))
    return Block(block.space, type(rows)(**{**vars(rows), "digests": np.zeros(len(rows), "V16")}), block.vectors)


def append(store: Store) -> None:
    with store.writer() as writer:
        writer.append(BLOCKS[2])


def fill(store: Store) -> None:
    """Seal a shard within `append`; if that fails, it is tried again at the end of the block."""
    with store.writer(rows_per_shard=20) as writer:
        writer.append(BLOCKS[2])


def replace(store: Store) -> None:
    with store.writer() as writer:
        writer.append(changed(BLOCKS[0].take(slice(0, 5))))


def drop(store: Store) -> None:
    store.delete(Filter(label=[1]))


def undo(store: Store) -> None:
    store.undo(0)


def shrink(store: Store) -> None:
    compact(store, rows_per_shard=50)


def index(store: Store) -> None:
    """Build an index although there are few rows."""
    build_index(store, "plain", anew=True)


def column(store: Store) -> None:
    with named_vectors_writer(store.folder, "other", space(DIM)) as writer:
        writer.put(np.arange(len(writer.snapshot)), writer.snapshot.vectors())


def exported(store: Store) -> None:
    export_rows(store.snapshot(), store.folder.with_suffix(".out"), "numpy")


EVERY = [append, fill, replace, drop, undo, shrink, index, column]


def state(store: Store) -> dict[str, Any]:
    snapshot = store.snapshot()
    values = zip(snapshot.rows.digests.tolist(), snapshot.vectors().tolist(), strict=True)
    return dict(zip(snapshot.rows.keys.tolist(), values, strict=True))


CHANGES = [
    pytest.param(change, kill, id=f"{change.__name__}, {'killed' if kill else 'disk full'}", marks=marks)
    for change in EVERY
    for kill in (True, False)
    for marks in [() if (change, kill) in ((append, True), (drop, False)) else pytest.mark.slow]
]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the flush itself; calls of fsync are counted nevertheless."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize(("change", "kill"), CHANGES)
def test_change_failing_anywhere_is_complete_or_absent(
    tmp_path: Path, change: Callable[[Store], None], kill: bool
) -> None:
    model = prepared(tmp_path / "model")
    before = state(model)
    calls = calls_of(lambda: change(model))
    after = state(model)
    outcomes = set()
    start = prepared(tmp_path / "start").folder
    for fail_at in range(1, calls + 1):
        store = Store(shutil.copytree(start, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=kill), suppress(Killed, ClipfakeError):
            change(store)
        after_failure = state(store)
        assert after_failure in (before, after), f"call {fail_at} failed"
        assert verify(store.folder).problems == (), f"call {fail_at} failed"
        outcomes.add(after_failure == after)
        change(store)  # try again
        assert state(store) == after, f"call {fail_at} failed"
        shutil.rmtree(store.folder)
    assert calls > 5
    assert True in outcomes


def damaged_store(folder: Path, damaged: str) -> Store:
    """Two shards, five rows deleted, and a byte of one file flipped."""
    store = prepared(folder)
    with store.writer() as writer:
        writer.delete(np.arange(40) >= 35)
    content = bytearray((folder / damaged).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / damaged).write_bytes(content)
    return store


@contextmanager
def unlistable(room: str) -> Iterator[None]:
    """A folder of a store that a failing disk or mount does not list."""
    opened = os.open

    def fails(path: Any, *args: Any, **options: Any) -> int:
        if path == room:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", fails)
        yield


@pytest.mark.parametrize("room", ["snapshots", "shards", "deleted"])
def test_room_that_cannot_be_listed_is_not_repaired_as_an_empty_one(tmp_path: Path, room: str) -> None:
    store = damaged_store(tmp_path, "snapshots/000003.json")
    with unlistable(room), pytest.raises(Unreadable, match=f"{room} cannot be read now"):
        repair(store.folder)
    repair(store.folder)
    assert len(state(store)) == 35


def test_named_vectors_that_cannot_be_listed_are_not_left_behind(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    column(store)
    drop(store)
    with unlistable("columns"), pytest.raises(Unreadable, match="columns cannot be read now"):
        shrink(store)
    shrink(store)
    assert not open_named_vectors(store.folder, "other").missing(store.snapshot()).any()


DAMAGED = ["shards/000001.h5", "snapshots/000002.json", "snapshots/000003.json", "deleted/000002-000003.u4"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
@pytest.mark.parametrize("damaged", DAMAGED)
def test_interrupted_repair_is_completed_by_the_next(tmp_path: Path, damaged: str, kill: bool) -> None:
    whole, model = (damaged_store(tmp_path / name, damaged) for name in ("whole", "model"))
    assert not verify(whole.folder).sound
    calls = calls_of(lambda: repair(model.folder))
    after = state(model)
    for fail_at in range(1, calls + 1):
        store = Store(shutil.copytree(whole.folder, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=kill), suppress(Killed, ClipfakeError):
            repair(store.folder)
        repair(store.folder)
        assert verify(store.folder).problems == (), f"call {fail_at} failed"
        assert state(store) == after, f"call {fail_at} failed"
        shutil.rmtree(store.folder)
    assert calls > 5


def test_failed_index_build_changes_no_result(tmp_path: Path) -> None:
    store = prepared(tmp_path / "s")
    queries = store.snapshot().vectors(slice(0, 3))
    with failing(10**9, kill=False) as faults:
        index(store)
    for fail_at in range(1, faults.count + 1, 4):
        with failing(fail_at, kill=False), suppress(ClipfakeError):
            index(store)
        assert verify(store.folder).problems == ()
        found = store.snapshot().search(queries, 4)
        assert np.allclose(found.similarity, store.snapshot().search(queries, 4, recall=1).similarity, atol=1e-3)


@pytest.mark.parametrize("change", EVERY, ids=lambda change: change.__name__)
def test_full_disk_is_a_store_error(tmp_path: Path, change: Callable[[Store], None]) -> None:
    start, failures = prepared(tmp_path / "start").folder, 0
    calls = calls_of(lambda: change(Store(shutil.copytree(start, tmp_path / "model"))))
    for fail_at in range(1, calls + 1, 3):
        store = Store(shutil.copytree(start, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=False):
            try:
                change(store)
            except StoreError as e:
                failures += "No space left on device" in str(e)
    assert failures > 0


@pytest.mark.parametrize("damaged", DAMAGED)
def test_full_disk_during_repair_is_a_store_error(tmp_path: Path, damaged: str) -> None:
    """Any other error fails the test. With disk space again, the repair completes."""
    whole, model = (damaged_store(tmp_path / name, damaged) for name in ("whole", "model"))
    calls, failures = calls_of(lambda: repair(model.folder)), 0
    after = state(model)
    for fail_at in range(1, calls + 1, 3):
        store = Store(shutil.copytree(whole.folder, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=False):
            try:
                repair(store.folder)
            except StoreError as e:
                failures += "No space left on device" in str(e)
        repair(store.folder)
        assert state(store) == after, f"call {fail_at} failed"
    assert failures > 0


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
def test_interrupted_creation_can_be_repeated(tmp_path: Path, kill: bool) -> None:
    calls = calls_of(lambda: Store.create(tmp_path / "model", space(DIM)))
    for fail_at in range(1, calls + 1):
        folder = tmp_path / f"{fail_at}"
        with failing(fail_at, kill=kill), suppress(Killed, StoreError):
            Store.create(folder, space(DIM))
        assert len(Store.create(folder, space(DIM)).snapshot()) == 0, f"call {fail_at} failed"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_failed_export_is_complete_or_absent(tmp_path: Path, layout: Layout) -> None:
    def files(folder: Path) -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.rglob("*"))

    snapshot, out, failures = prepared(tmp_path / "s").snapshot(), tmp_path / "out", 0
    calls = calls_of(lambda: export_rows(snapshot, tmp_path / "model", layout))
    for fail_at in range(1, calls + 1):
        with failing(fail_at, kill=False):
            try:
                export_rows(snapshot, out, layout)
            except StoreError:
                failures += 1
        if out.exists():
            assert files(out) == files(tmp_path / "model"), f"call {fail_at} failed"
            shutil.rmtree(out)
    assert failures > 3
    export_rows(snapshot, out, layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "s"]


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Limit the size of files that Python, HDF5, FAISS or Arrow write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("change", [*EVERY, exported], ids=lambda change: change.__name__)
def test_file_size_limit_is_a_store_error(
    tmp_path: Path, change: Callable[[Store], None], file_size_limit: Callable[[int], None]
) -> None:
    store, failures = prepared(tmp_path / "s"), 0
    before = state(store)
    for size in (0, 100, 1000, 3000, 5000):
        file_size_limit(size)
        try:
            change(store)
        except StoreError as e:
            failures += "File too large" in str(e) or "write" in str(e)
            assert state(store) == before
            assert verify(store.folder).problems == ()
    assert failures > 0


def test_files_are_on_disk_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure keeps only files and folder entries that were flushed."""
    flushed: set[tuple[int, int, int]] = set()
    waiting: set[Path] = set()  # folders whose entries changed since they were flushed
    commits: list[str] = []
    needs = {"snapshots": ("shards/*.h5", "deleted/*.u4"), "other": ("columns/other/*.f2",)}

    def identity(status: os.stat_result) -> tuple[int, int, int]:
        return status.st_ino, status.st_mtime_ns, status.st_size

    def fsync(handle: int) -> None:
        flushed.add(identity(os.fstat(handle)))
        waiting.difference_update({path for path in waiting if path.stat().st_ino == os.fstat(handle).st_ino})

    def mkdir(path: Path, mode: int = 0o777, real: Any = os.mkdir) -> None:
        real(path, mode)
        waiting.add(Path(path).parent)

    def moved(real: Any) -> Any:
        def move(source: Path, target: Path) -> None:
            source, target = Path(source), Path(target)
            if source.is_file():
                assert identity(source.stat()) in flushed, target.name
            if target.suffix == ".json" and target.parent.name in needs:
                commits.append(target.name)
                assert not waiting - {target.parent}
                for pattern in needs[target.parent.name]:
                    assert {identity(path.stat()) for path in (tmp_path / "s").glob(pattern)} <= flushed, pattern
            real(source, target)
            waiting.update({target.parent, source.parent})

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "rename", moved(os.rename))
    monkeypatch.setattr(os, "replace", moved(os.replace))
    monkeypatch.setattr(os, "link", moved(os.link))
    store = prepared(tmp_path / "s")
    for change in EVERY:
        change(store)
    exported(store)
    assert len(commits) > len(EVERY)
    assert not waiting


@pytest.mark.parametrize("change", [append, drop, undo, exported], ids=lambda change: change.__name__)
def test_change_that_is_made_but_not_flushed_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Store], None]
) -> None:
    """The last folder to be flushed is that of the manifest, or of the export."""
    store, counted = prepared(tmp_path / "s"), prepared(tmp_path / "counted")
    before, calls = state(store), [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == last:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    last = -1
    change(counted)
    last, calls[0] = calls[0], 0
    with pytest.raises(Unflushed, match=r"Input/output error\): it may or may not be there after a power failure") as e:
        change(store)
    assert "nothing stored before was changed" not in str(e.value)
    assert state(store) == state(counted)
    assert change is exported or state(store) != before
    assert verify(store.folder).problems == ()


def test_failing_write_of_hdf5_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 ends the process by a segmentation fault if its own write fails."""
    store = prepared(tmp_path / "s")
    written = 0

    def failing_try(file: Any, method: str, *arguments: Any, real: Any = _KeptErrors._try) -> Any:
        nonlocal written
        written += method == "write"
        if method == "write" and written == fail_at:
            file._error = file._error or OSError(errno.EIO, "Input/output error")
        return real(file, method, *arguments)

    monkeypatch.setattr(_KeptErrors, "_try", failing_try)
    fail_at = -1
    append(Store(shutil.copytree(store.folder, tmp_path / "counted")))
    writes = written
    assert writes > 5
    for fail_at in (1, writes // 2, writes):
        written = 0
        with pytest.raises(StoreError, match=r"Input/output error; nothing stored before was changed"):
            fill(store)
        store = prepared(tmp_path / f"{fail_at}")
    assert verify(store.folder).problems == ()


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    model = prepared(tmp_path / "model")
    for fail_at in range(calls_of(lambda: index(model)), 0, -1):
        store = prepared(tmp_path / f"killed at {fail_at}")
        with failing(fail_at, kill=True), pytest.raises(Killed):
            index(store)
        if list((store.folder / "indexes").glob("*.tmp")):
            break
    assert list((store.folder / "indexes").glob("*.tmp"))
    append(store)  # the next index is of another snapshot
    index(store)
    assert not list((store.folder / "indexes").glob("*.tmp"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e6, 1e-9])
def test_refused_block_does_not_affect_others(tmp_path: Path, value: float) -> None:
    store = prepared(tmp_path / "s")
    first, second = BLOCKS[2].take(slice(0, 10)), BLOCKS[2].take(slice(10, 20))
    with store.writer() as writer:
        writer.append(first)
        vectors = second.vectors.copy()
        vectors[3] = value
        with pytest.raises(BadBlock, match=r"row 3 \(.*zero or not finite, 1 such"):
            writer.append(replaced(second, vectors=vectors))
        writer.append(second)
    assert len(store.snapshot()) == 60


def test_array_can_be_reused_after_append(tmp_path: Path) -> None:
    store = prepared(tmp_path / "s")
    vectors = BLOCKS[2].vectors.astype(np.float16)
    with store.writer() as writer:
        writer.append(replaced(BLOCKS[2], vectors=vectors))
        vectors[:] = 1
    assert np.allclose(store.snapshot().vectors(slice(40, 60)), BLOCKS[2].vectors, atol=1e-3)
