"""A copy made file by file while the store changes: `repair` makes it sound, and none of its rows is thrown away."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.errors import ClipfakeError, StoreError, Unreadable
from clipfake.indexer.shard_inbox import commit
from clipfake.store.filter import Filter
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.repair import RepairReport, repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.manifest import Compaction
from clipfake.store.records import Block
from clipfake.store.shard import Shard, write_shard
from clipfake.store.store import Store

DIM = 4
ORIGINAL = list(synthetic(60, DIM, seed=1, size=20))
NEW = next(iter(synthetic(10, DIM, seed=5)))
LATER = Block(NEW.space, NEW.rows.take(slice(5, 10)), NEW.vectors[5:10])
NOW = timedelta(0)
DELETED = ORIGINAL[0].rows.keys[:5].tolist()  # before the copy begins


def prepared(folder: Path) -> Store:
    """Three shards, 5 rows of the first of which are deleted."""
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=20) as writer:
        for block in ORIGINAL:
            writer.append(block)
    store.delete(Filter(key=DELETED))
    return store


def add(store: Store, block: Block = NEW) -> None:
    with store.writer() as writer:
        writer.append(block)


def both(*changes: Callable[[Store], object]) -> Callable[[Store], object]:
    return lambda store: [change(store) for change in changes]


def delete(store: Store) -> None:
    store.delete(Filter(key=ORIGINAL[1].rows.keys[:7].tolist()))


CHANGES: dict[str, Callable[[Store], object]] = {
    "compact": compact,
    "compact at once": lambda store: compact(store, grace=NOW),
    "compact small": lambda store: compact(store, rows_per_shard=16, grace=NOW),
    "compact twice": both(lambda s: compact(s, grace=NOW), delete, lambda s: compact(s, grace=NOW)),
    "compact, delete": both(lambda s: compact(s, grace=NOW), delete),
    "compact with grace, delete, add": both(compact, delete, add),
    "add": add,
    "add, compact": both(add, lambda s: compact(s, grace=NOW)),
    "delete": delete,
    "undo": lambda store: store.undo(3),
    "delete, undo": both(delete, lambda store: store.undo(4)),
}


def copied(store: Path, copy: Path, rooms: list[str], change: Callable[[], object], at: int) -> None:
    """Copy room by room and file by file, as `cp` and `rsync` do, and change the store after `at` files."""
    count = 0
    for room in rooms:
        (copy / room).mkdir(parents=True)
        listed = sorted((store / room).iterdir(), reverse=rooms != sorted(rooms))
        for path in listed:
            if count == at:
                change()
            if path.exists():
                shutil.copy(path, copy / room)
            count += 1
    if count <= at:
        change()


def keys(store: Store) -> set[str]:
    return set(store.snapshot().column("keys").tolist())


def keys_on_disk(folder: Path) -> set[str]:
    """Keys of all rows in whole shards anywhere in the folder."""
    return {key for path in folder.rglob("*.h5*") for key in _keys_of(path)}


def _keys_of(path: Path) -> list[str]:
    try:
        return Shard(path).column("keys").tolist()  # type: ignore[no-any-return]
    except ClipfakeError:  # not whole
        return []


ORDERS = [["deleted", "shards", "snapshots"], ["snapshots", "shards", "deleted"], ["shards", "snapshots", "deleted"]]
ORDERS = [*ORDERS, ["snapshots", "deleted", "shards"]]


def copies(tmp_path: Path, change: str, order: list[str]) -> Iterator[tuple[Store, set[str], set[str]]]:
    """Copies with the change after each number of files, and the keys before and after it."""
    start = prepared(tmp_path / "start")
    before = keys(start)
    for at in range(sum(len(list((start.folder / room).iterdir())) for room in order) + 1):
        store = Store(shutil.copytree(start.folder, tmp_path / f"{at}"))
        copied(store.folder, tmp_path / f"copy{at}", order, lambda store=store: CHANGES[change](store), at)  # type: ignore[misc]
        yield Store(tmp_path / f"copy{at}"), before, keys(store)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


COPIES = [
    pytest.param(change, order, id=f"{change}: {', '.join(order)}", marks=marks)
    for change in CHANGES
    for order in ORDERS
    for marks in [() if change == "compact at once" and order == ORDERS[0] else pytest.mark.slow]
]


@pytest.mark.parametrize(("change", "order"), COPIES)
def test_copy_keeps_the_rows_of_both_moments(tmp_path: Path, change: str, order: list[str]) -> None:
    damaged = 0
    for copy, before, after in copies(tmp_path, change, order):
        held = keys_on_disk(copy.folder)
        report = repair(copy.folder)
        damaged += bool(report.actions)
        assert verify(copy.folder).sound
        if copy.snapshots()[-1].number < 4:  # only a snapshot of before these rows was copied, and is whole
            add(copy, LATER)
            assert (before & after & held) <= keys_on_disk(copy.folder)
            continue
        lost = (before & after & held) - keys(copy)
        assert not lost, f"{copy.folder}: {report}"
        returned = sum(key not in before | after for key in keys(copy))
        assert returned == 0 or rows_reported_back(report) >= returned, f"{copy.folder}: {report}"
        assert report.lost >= 0
        add(copy, LATER)  # the next writer removes what no snapshot names
        assert (before & after & held) <= keys(copy)
        assert verify(copy.folder).sound
    assert damaged > 0 or order[0] == "snapshots" or change not in ("compact at once", "compact twice")


def rows_reported_back(report: RepairReport) -> int:
    """Number of deleted rows that a report says came back, at most."""
    words = " ".join(action.what for action in report.actions if "came back" in action.what).split()
    return sum(int(word) for word in words if word.isdigit())


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=() if name == "compact at once" else pytest.mark.slow) for name in CHANGES]
)
def test_writer_of_a_torn_copy_throws_nothing_away(tmp_path: Path, change: str) -> None:
    """Without a repair, writers fail or go on, but remove no shard that may be the only one with its rows."""
    for copy, before, after in copies(tmp_path, change, ORDERS[0]):
        held = keys_on_disk(copy.folder)
        if not verify(copy.folder).sound:
            errors: list[str] = []
            for again in (add, lambda store: compact(store, grace=NOW)):
                try:
                    again(copy)
                except StoreError as e:
                    errors.append(str(e))
            assert all("verify" in error or "repair" in error for error in errors)
            assert before & after & held <= keys_on_disk(copy.folder)


@pytest.mark.slow
def test_copy_within_the_grace_has_the_whole_snapshot_of_its_beginning(tmp_path: Path) -> None:
    for order in ORDERS:
        for copy, _, _ in copies(tmp_path / order[0] / order[1], "compact", order):
            with_rows = [m.number for m in copy.snapshots() if m.number == 4]
            assert with_rows == [4]
            copy.snapshot(4).require_shards()
            assert len(copy.snapshot(4).vectors()) == 55


def test_compaction_frees_space_after_the_grace(tmp_path: Path) -> None:
    store = prepared(tmp_path / "s")
    before = sum(path.stat().st_size for path in (store.folder / "shards").iterdir())
    report = compact(store)
    on_disk = sum(path.stat().st_size for path in (store.folder / "shards").iterdir())
    assert report.bytes == (before, on_disk)
    assert on_disk > before
    assert (report.given_up, report.kept, report.reclaimable) == (0, 3, before)
    assert store.undo(4).number == 6  # still possible
    add(store)
    assert (store.folder / "shards/000001.h5").exists()
    report = compact(store, grace=NOW)
    assert (report.kept, report.reclaimable, report.kept_until) == (0, 0, "")
    assert len(list((store.folder / "shards").iterdir())) == 1
    assert [m.number for m in store.snapshots()] == [report.snapshot]


def test_next_writer_frees_space_after_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepared(tmp_path / "s")
    compact(store)
    held = store.snapshot(4)
    add(store)
    assert [m.number for m in store.snapshots()] == [0, 3, 4, 5, 6]
    monkeypatch.setattr(Compaction, "is_over", lambda self, now: now + timedelta(hours=2) > now)
    add(store, LATER)
    assert [m.number for m in store.snapshots()] == [4, 5, 6]
    assert len(held.vectors()) == 55
    del held
    store.delete(Filter(key=ORIGINAL[2].rows.keys[:1].tolist()))
    assert [m.number for m in store.snapshots()] == [5, 6, 7]
    assert not (store.folder / "shards/000001.h5").exists()


def test_repair_does_not_bring_undone_rows_back(tmp_path: Path) -> None:
    """Rows of an undone shard are not those that were lost with another one."""
    store = prepared(tmp_path / "s")
    add(store)
    store.undo(4)
    (store.folder / "shards/000002.h5").unlink()
    report = repair(store.folder)
    assert report.lost == 20
    assert keys(store) == {key for i in (0, 2) for key in ORIGINAL[i].rows.keys.tolist()} - set(DELETED)


def test_shard_with_more_rows_than_were_lost_is_set_aside(tmp_path: Path) -> None:
    """Nothing says which of them were deleted."""
    store = prepared(tmp_path / "s")
    compact(store, rows_per_shard=20, grace=NOW)
    manifest = store.snapshots()[-1]
    assert manifest.compaction is not None
    for part in manifest.parts:
        (store.folder / "shards" / part.name).unlink()
    write_shard(store.folder / "shards/000001.h5", Block.concat([*ORIGINAL, NEW]))  # no snapshot names it
    report = repair(store.folder)
    assert report.lost == 55
    assert [path.name for path in (store.folder / "quarantine/shards").iterdir()] == ["000001.h5"]
    assert any("move it to incoming/" in action.what for action in report.actions)
    (store.folder / "incoming").mkdir(exist_ok=True)
    shutil.move(store.folder / "quarantine/shards/000001.h5", store.folder / "incoming/back.h5")
    assert commit(store)
    assert len(keys(store)) == 70
    assert np.isin(DELETED, list(keys(store))).all()


def test_unnamed_shard_that_cannot_be_read_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that was killed before its commit left it."""
    store = prepared(tmp_path / "s")
    path = store.folder / "shards" / f"{store.snapshots()[-1].next_shard:06d}.h5"
    write_shard(path, NEW)
    opened = h5py.File.__init__

    def fails(file: h5py.File, name: Any, *args: Any, **options: Any) -> None:
        if name == path:
            raise OSError(errno.EIO, "Input/output error")
        opened(file, name, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(h5py.File, "__init__", fails)
        with pytest.raises(Unreadable):
            add(store, LATER)
    add(store, LATER)
    assert [path.name for path in (store.folder / "quarantine/shards").iterdir()] == [path.name]
