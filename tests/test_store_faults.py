"""Every call a commit makes to the system fails in turn: the store is then as before or as after, never between."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.benchmarks.store_synthetic import space, synthetic
from clipfake.store.block import Block
from clipfake.store.compact import compact
from clipfake.store.errors import ClipfakeError
from clipfake.store.filter import Filter, delete
from clipfake.store.store import Store
from clipfake.store.verify import verify

DIM = 4
BLOCKS = list(synthetic(60, DIM, size=20))
# What a commit asks of the system: each is failed on its first, second, … use.
CALLS = [
    (os, "open"),
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (h5py.File, "__init__"),
    (h5py.Group, "create_dataset"),
    (h5py.AttributeManager, "__setitem__"),
    (h5py.File, "close"),
]


class Killed(BaseException):
    """The process is gone: nothing that comes after happens either."""


class Faults:
    """Counts the calls of CALLS and fails the n-th: once for a full disk, from then on for a killed process."""

    def __init__(self, fail_at: int, kill: bool) -> None:
        self.made, self.fail_at, self.kill = 0, fail_at, kill

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.made += 1
            if self.kill and self.made >= self.fail_at:
                raise Killed
            if self.made == self.fail_at:
                raise OSError(28, "No space left on device")
            return call(*args, **options)

        return counted


@contextmanager
def failing(fail_at: int, *, kill: bool) -> Iterator[Faults]:
    faults = Faults(fail_at, kill)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, faults.wrapped(getattr(owner, name)))
        yield faults


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


def replace(store: Store) -> None:
    with store.writer() as writer:
        writer.append(changed(BLOCKS[0].take(slice(0, 5))))


def drop(store: Store) -> None:
    delete(store, Filter(labels=[1]))


def back(store: Store) -> None:
    store.undo(0)


def shrink(store: Store) -> None:
    compact(store, rows_per_shard=50)


def state(store: Store) -> dict[str, Any]:
    snapshot = store.snapshot()
    facts = zip(snapshot.rows.digests.tolist(), snapshot.vectors().tolist(), strict=True)
    return dict(zip(snapshot.rows.keys.tolist(), facts, strict=True))


CHANGES = [
    pytest.param(change, kill, id=f"{change.__name__}, {'killed' if kill else 'disk full'}", marks=marks)
    for change in (append, replace, drop, back, shrink)
    for kill in (True, False)
    for marks in [() if (change, kill) in ((append, True), (drop, False), (shrink, True)) else pytest.mark.slow]
]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """That bytes reach the platter cannot be seen from here; that it is asked for is counted all the same."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize(("change", "kill"), CHANGES)
def test_a_change_that_fails_anywhere_is_whole_or_absent(
    tmp_path: Path, change: Callable[[Store], None], kill: bool
) -> None:
    model = prepared(tmp_path / "model")
    before = state(model)
    change(model)
    after = state(model)
    outcomes = set()
    start = prepared(tmp_path / "start").folder
    for fail_at in range(1, 500):
        store = Store(shutil.copytree(start, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=kill) as faults, suppress(Killed, ClipfakeError, OSError):
            change(store)
        now = state(store)
        assert now in (before, after), f"call {fail_at} failed"
        assert verify(store.folder).problems == (), f"call {fail_at} failed"
        outcomes.add(now == after)
        change(store)  # the same again
        assert state(store) == after, f"call {fail_at} failed"
        if faults.made < fail_at:
            break
    assert faults.made < fail_at, "more calls than were tried"
    assert fail_at > 5
    assert True in outcomes


@pytest.mark.parametrize("change", [append, drop], ids=lambda f: f.__name__)
def test_a_full_disk_is_a_store_error(tmp_path: Path, change: Callable[[Store], None]) -> None:
    store, model = prepared(tmp_path / "s"), prepared(tmp_path / "model")
    with failing(10**9, kill=False) as faults:
        change(model)
    told = 0
    for fail_at in range(1, faults.made + 1, 3):
        with failing(fail_at, kill=False):
            try:
                change(store)
            except ClipfakeError as e:
                told += "could not write" in str(e)
    assert told > 0
