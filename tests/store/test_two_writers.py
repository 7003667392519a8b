"""Two writers that cannot see each other's lock: whatever one is told to be stored stays, and the other one refuses.

A lock is lost when its file is removed or replaced, when the store is moved, and on network mounts whose locks hold on
one machine only.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.core.locking import HELD, NAME
from clipfake.errors import ClipfakeError, StoreError
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors, vector_names
from clipfake.store.store import Store
from fault_injection import calls_of, failing

DIM = 4
BLOCKS = list(synthetic(80, DIM, size=20))
Change = Callable[[Store], object]


def append(store: Store, block: int = 2) -> None:
    with store.writer(rows_per_shard=10) as writer:
        writer.append(BLOCKS[block])


def other(store: Store) -> None:
    append(store, 3)


def drop(store: Store) -> None:
    store.delete(Filter(label=[1]))


def relabel(store: Store) -> None:
    with store.writer() as writer:
        labels = [row.corrected(row) for row in writer.snapshot.row_labels(np.arange(5))]
        writer.relabel(writer.snapshot.ids[:5], labels)


def undo(store: Store) -> None:
    store.undo(0)


def shrink(store: Store) -> None:
    compact(store, rows_per_shard=50)


def index(store: Store) -> None:
    build_index(store, "plain", anew=True)


def column(store: Store, name: str = "first") -> None:
    with named_vectors_writer(store.folder, name, space(DIM)) as writer:
        missing = np.flatnonzero(writer.column.missing(writer.snapshot))
        writer.put(missing, writer.snapshot.vectors()[missing])


def opened(store: Store) -> None:
    """Removes what the other writer has not committed yet, and commits nothing."""
    with store.writer():
        pass


FIRST: list[Change] = [append, drop, relabel, undo, shrink, column, index]
SECOND: list[Change] = [other, drop, opened, shrink, column, index]


def prepared(folder: Path) -> Store:
    store = Store.create(folder, space(DIM))
    append(store, 0)
    with named_vectors_writer(folder, "first", space(DIM)) as writer:
        writer.put(np.arange(10), writer.snapshot.vectors()[:10])
    append(store, 1)
    return store


def state(store: Store) -> dict[str, Any]:
    """Vectors and named vectors by key."""
    snapshot = store.snapshot()
    names = vector_names(store.folder)
    named = [open_named_vectors(store.folder, name).vectors(snapshot, np.arange(len(snapshot))) for name in names]
    rows = zip(snapshot.rows.keys.tolist(), snapshot.vectors(), *named, strict=True)
    return {key: [np.nan_to_num(array).tolist() for array in arrays] for key, *arrays in rows}


def remove_lock(folder: Path) -> None:
    (folder / NAME).unlink()


def replace_lock(folder: Path) -> None:
    shutil.copy(folder / NAME, folder / "copy")
    (folder / "copy").replace(folder / NAME)


def local_locks(folder: Path) -> None:
    """The locks do not fail, but exclude nobody."""


def empty_lock(folder: Path) -> None:
    remove_lock(folder)
    (folder / NAME).touch()


LOSSES = [remove_lock, replace_lock, local_locks, empty_lock]


def succeeds(change: Change, store: Store) -> bool:
    try:
        change(store)
    except StoreError:  # any other error fails the test
        return False
    return True


def sampled(calls: int) -> list[int]:
    """Some of the calls, with another first one for another number; all with CLIPFAKE_EVERY_CALL in the environment."""
    step = 1 if os.environ.get("CLIPFAKE_EVERY_CALL") else 5
    return list(range(1 + calls % step, calls + 1, step))


def paused_at(
    call: int, first: Change, second: Change, lose: Callable[[Path], None], store: Store
) -> tuple[bool, bool]:
    """Pause the first change before a call, and let the second one run meanwhile; returns which of them succeeded."""
    done = []

    def meanwhile() -> None:
        for folder in (store.folder, store.folder / "indexes"):
            if (folder / NAME).exists():
                lose(folder)
        done.append(succeeds(second, store))

    with pytest.MonkeyPatch.context() as patch, failing(call, kill=False, meanwhile=meanwhile):
        if lose is local_locks:
            patch.setattr(fcntl, "flock", lambda handle, operation: None)
        first_done = succeeds(first, store)
    return first_done, done == [True]


QUICK = [(append, opened, local_locks), (append, other, remove_lock), (column, column, local_locks)]
PAIRS = [
    pytest.param(first, second, lose, id=f"{first.__name__}, {second.__name__}, {lose.__name__}", marks=marks)
    for first in FIRST
    for second in SECOND
    for lose in LOSSES
    for marks in [() if (first, second, lose) in QUICK else pytest.mark.slow]
]


@pytest.mark.parametrize(("first", "second", "lose"), PAIRS)
def test_writer_that_lost_its_lock_loses_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Change, second: Change, lose: Callable[[Path], None]
) -> None:
    """Both changes have effect in some order, or the first one has none and is an error."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    start = prepared(tmp_path / "start").folder

    def state_after(*changes: Change) -> dict[str, Any]:
        store = Store(shutil.copytree(start, tmp_path / "model"))
        for change in changes:
            with suppress(StoreError):
                change(store)
        result = state(store)
        shutil.rmtree(store.folder)
        return result

    both = [state_after(first, second), state_after(second, first)]
    alone, second_alone = state_after(first), state_after(second)
    counted = Store(shutil.copytree(start, tmp_path / "counted"))
    calls = calls_of(lambda: first(counted))
    outcomes = set()
    for call in sampled(calls):
        store = Store(shutil.copytree(start, tmp_path / f"{call}"))
        done = paused_at(call, first, second, lose, store)
        where = f"call {call} of {calls}: {done}"
        assert verify(store.folder).problems == (), where
        expected = {
            (True, True): both,
            (False, True): [second_alone, *both],
            (True, False): [alone],
            (False, False): [state(Store(start)), alone],
        }[done]
        assert state(store) in expected, where
        outcomes.add(done)
        assert succeeds(first, store) or first is undo, where  # after compaction, there is no earlier snapshot
        shutil.rmtree(store.folder)
    assert (False, True) in outcomes or (first is index) != (second is index)  # which has a lock of its own


@pytest.mark.parametrize("links", [errno.EPERM, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_writers_without_hard_links_lose_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: int) -> None:
    def link(*args: Any, **options: Any) -> None:
        raise OSError(links, os.strerror(links))

    monkeypatch.setattr(os, "link", link)
    test_writer_that_lost_its_lock_loses_no_rows(tmp_path, monkeypatch, append, other, local_locks)


@pytest.mark.parametrize("again", [True, False], ids=["made again", "gone"])
def test_store_moved_under_a_writer_gets_none_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    start = prepared(tmp_path / "start").folder
    counted = Store(shutil.copytree(start, tmp_path / "counted"))
    calls = calls_of(lambda: append(counted))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for call in sampled(calls)[1:]:  # not before the store is open
        store = Store(shutil.copytree(start, tmp_path / f"{call}"))

        def meanwhile(store: Store = store, call: int = call) -> None:
            store.folder.rename(tmp_path / f"{call} moved")
            if again:
                other(Store.create(store.folder, space(DIM)))

        with failing(call, kill=False, meanwhile=meanwhile):
            done = succeeds(append, store)
        moved = Store(tmp_path / f"{call} moved")
        assert verify(moved.folder).problems == (), f"call {call}"
        assert len(moved.snapshot()) in ((60,) if done else (40, 50, 60)), f"call {call}"
        if again:
            assert verify(store.folder).problems == (), f"call {call}"
            assert len(store.snapshot()) == 20, f"call {call}"


@pytest.mark.parametrize("held", [NAME, HELD])
def test_lost_lock_is_told_with_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if held == HELD:
        monkeypatch.setattr(fcntl, "flock", flock)
    store = prepared(tmp_path / "s")
    path = store.folder / held

    def removed() -> None:
        path.unlink()

    def replaced() -> None:
        (store.folder / "new").touch()
        (store.folder / "new").replace(path)

    def written() -> None:
        path.write_text("process 7 on elsewhere, writer 01234567")

    losses = ((removed, "was removed"), (replaced, "was replaced"), (written, "was written by process 7 on elsewhere"))
    for lose, loss in losses:
        expected = rf"{held} {loss} while this .* nothing more was stored"
        with pytest.raises(StoreError, match=expected), store.writer() as writer:
            writer.append(BLOCKS[2])
            lose()
        assert len(store.snapshot()) == 40
        assert path.exists() == (lose is not removed)  # the lock of the other one stays
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_lock_that_is_no_file_is_refused_and_unchanged(tmp_path: Path, kind: str) -> None:
    store, mine = prepared(tmp_path / "s"), tmp_path / "mine"
    mine.write_text("mine")
    (store.folder / NAME).unlink()
    if kind == "link":
        (store.folder / NAME).symlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(store.folder / NAME)
    else:
        (store.folder / NAME).mkdir()
    with (
        pytest.raises(
            ClipfakeError, match=r"is a symbolic link|is not the lock file|is a link or no regular file|Is a directory"
        ),
        store.writer(),
    ):
        pass
    assert mine.read_text() == "mine"
