"""Every call a commit makes to the system fails in turn: the store is then as before or as after, never between."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.store_synthetic import space, synthetic
from clipfake.store.block import Block
from clipfake.store.build import build_index
from clipfake.store.compact import compact
from clipfake.store.errors import ClipfakeError
from clipfake.store.filter import Filter, delete
from clipfake.store.repair import repair
from clipfake.store.store import Store
from clipfake.store.verify import verify
from faults import Killed, failing

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


def replace(store: Store) -> None:
    with store.writer() as writer:
        writer.append(changed(BLOCKS[0].take(slice(0, 5))))


def drop(store: Store) -> None:
    delete(store, Filter(labels=[1]))


def back(store: Store) -> None:
    store.undo(0)


def shrink(store: Store) -> None:
    compact(store, rows_per_shard=50)


def index(store: Store) -> None:
    """With few rows it must be asked for; FAISS needs some of each label."""
    build_index(store, "plain", anew=True)


def state(store: Store) -> dict[str, Any]:
    snapshot = store.snapshot()
    facts = zip(snapshot.rows.digests.tolist(), snapshot.vectors().tolist(), strict=True)
    return dict(zip(snapshot.rows.keys.tolist(), facts, strict=True))


CHANGES = [
    pytest.param(change, kill, id=f"{change.__name__}, {'killed' if kill else 'disk full'}", marks=marks)
    for change in (append, replace, drop, back, shrink, index)
    for kill in (True, False)
    for marks in [() if (change, kill) in ((append, True), (drop, False)) else pytest.mark.slow]
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


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
@pytest.mark.parametrize("damaged", ["shards/000001.h5", "snapshots/000001.json", "deleted/000002-000002.u4"])
def test_a_repair_that_fails_anywhere_is_ended_by_the_next(tmp_path: Path, damaged: str, kill: bool) -> None:
    whole = prepared(tmp_path / "whole")
    with whole.writer() as writer:
        writer.delete(np.arange(40) >= 35)
    path = whole.folder / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    model = Store(shutil.copytree(whole.folder, tmp_path / "model"))
    repair(model.folder)
    after = state(model)
    for fail_at in range(1, 300):
        store = Store(shutil.copytree(whole.folder, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=kill) as faults, suppress(Killed, ClipfakeError, OSError):
            repair(store.folder)
        repair(store.folder)
        assert verify(store.folder).problems == (), f"call {fail_at} failed"
        assert state(store) == after, f"call {fail_at} failed"
        if faults.made < fail_at:
            break
    assert faults.made < fail_at, "more calls than were tried"
    assert fail_at > 3


def test_an_index_that_could_not_be_written_changes_no_answer(tmp_path: Path) -> None:
    store = prepared(tmp_path / "s")
    queries = store.snapshot().vectors(slice(0, 3))
    with failing(10**9, kill=False) as faults:
        index(store)
    for fail_at in range(1, faults.made + 1, 4):
        with failing(fail_at, kill=False), suppress(ClipfakeError):
            index(store)
        assert verify(store.folder).problems == ()
        found = store.snapshot().search(queries, 4)
        assert np.allclose(found.similarity, store.snapshot().search(queries, 4, recall=1).similarity, atol=1e-3)
