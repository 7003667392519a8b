"""Indexes of named vectors: their searches, changes of rows and vectors after the build, and damage."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.errors import NotEnoughRows, StoreError
from clipfake.store.concatenated import concatenated_snapshot
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors
from clipfake.store.search.ann_index import folders
from clipfake.store.search.matches import nearest
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store

ROWS, DIM = 3000, 16
OTHER = Space("other", "d" * 64, 12)
BOTH = ("main", "depth")


def fill(store: Store, where: Any = None, seed: int = 0) -> None:
    """Add vectors named depth to the rows of a mask (default: all): projections of the main ones."""
    directions = np.random.default_rng(seed).normal(size=(DIM, OTHER.dim))
    with named_vectors_writer(store.folder, "depth", OTHER) as writer:
        positions = np.arange(len(writer.snapshot)) if where is None else np.flatnonzero(where)
        vectors = writer.snapshot.vectors(positions) @ directions
        writer.put(positions, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def add_rows(store: Store, rows: int) -> None:
    with store.writer(rows_per_shard=1000) as writer:
        for block in synthetic(rows, DIM, size=1000):
            writer.append(block)


def recall(store: Store, names: tuple[str, ...] = BOTH, where: np.ndarray | None = None) -> float:
    """Share of the ten nearest rows of 60 rows that the index finds; 0 if nothing is searched by an index."""
    snapshot = concatenated_snapshot(store.snapshot(), names)
    assert snapshot._index is not None
    queries = snapshot.vectors(slice(0, len(snapshot), len(snapshot) // 60))
    positions = np.arange(len(snapshot)) if where is None else np.flatnonzero(where)
    true = nearest(queries, snapshot.vectors(positions), positions, 10).rows
    found = snapshot.search(queries, 10, where).rows
    assert where is None or where[found].all()
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))


def unindexed(snapshot: Snapshot, names: tuple[str, ...] = BOTH) -> int:
    """Number of rows that are in no index."""
    index = concatenated_snapshot(snapshot, names)._index
    return len(snapshot) if index is None else int(index._unindexed.sum())


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an index of the main vectors and one of both."""
    store = Store.create(tmp_path_factory.mktemp("indexed") / "s", space(DIM))
    add_rows(store, ROWS)
    fill(store)
    build_index(store, "plain")
    assert build_index(store, "plain", vectors=BOTH).action == "built"
    return store.folder


@pytest.fixture
def store(indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of it, where an index is used even if exact search is cheaper."""
    monkeypatch.setattr("clipfake.store.search.ann_index.exact_is_cheaper", lambda *_: False)
    return Store(shutil.copytree(indexed, tmp_path / "s"))


def test_concatenated_vectors_are_searched_by_their_own_index(store: Store) -> None:
    assert [path.name for path in folders(store.folder, BOTH)] == ["knn+main+depth-000003"]
    assert [path.name for path in folders(store.folder)] == ["knn-000003"]
    assert unindexed(store.snapshot()) == 0
    assert recall(store) >= 0.985
    sources = store.snapshot().column("sources")
    assert recall(store, where=sources != "source-03") >= 0.985
    assert recall(store, where=np.random.default_rng(1).random(ROWS) < 0.05) >= 0.985
    assert recall(store, ("main",)) >= 0.985
    assert concatenated_snapshot(store.snapshot(), ("depth",))._index is None
    build_index(store, "quantized", vectors=("depth",))
    assert recall(store, ("depth",)) >= 0.985
    assert build_index(store, "plain", vectors=BOTH).action == "fresh"
    assert verify(store.folder).notes == ()


def test_added_rows_are_found_and_then_indexed(store: Store) -> None:
    add_rows(store, ROWS + 400)
    with pytest.raises(NotEnoughRows, match="400 of 3400 rows have no vector depth"):
        build_index(store, "plain", vectors=BOTH)
    fill(store, np.arange(ROWS + 400) >= ROWS)
    assert unindexed(store.snapshot()) == 400
    assert recall(store) >= 0.985
    assert build_index(store, "plain", vectors=BOTH).action == "added"
    assert unindexed(store.snapshot()) == 0
    assert recall(store) >= 0.985
    assert [path.name for path in folders(store.folder, BOTH)] == ["knn+main+depth-000004"]
    assert [path.name for path in folders(store.folder)] == ["knn-000003"]  # that of the main vectors is left alone


def test_replaced_vectors_are_not_searched_by_the_old_index(store: Store) -> None:
    fill(store, np.arange(ROWS) < 500, seed=7)  # in the first shard of 1,000 rows
    assert unindexed(store.snapshot()) == 1000
    assert unindexed(store.snapshot(), ("main",)) == 0
    assert recall(store) >= 0.985
    report = verify(store.folder)
    assert report.sound
    assert [note.what for note in report.notes] == ["is of other vectors of 1 shards, whose rows are searched exactly"]
    assert build_index(store, "plain", vectors=BOTH).action == "built"  # a third of the indexed rows are of no use
    assert unindexed(store.snapshot()) == 0
    assert recall(store) >= 0.985


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(hours=1)])
def test_compaction_keeps_what_is_indexed(store: Store, grace: timedelta) -> None:
    fill(store, np.arange(ROWS) < 500, seed=7)
    with store.writer() as writer:
        writer.delete(np.arange(ROWS) % 10 == 0)
    compact(store, grace=grace)
    assert unindexed(store.snapshot()) == 900  # the rows whose vectors were replaced
    assert unindexed(store.snapshot(), ("main",)) == 0
    assert recall(store) >= 0.985
    assert verify(store.folder).sound


@pytest.mark.parametrize("file", ["index.json", "0.faiss", "1.ids.npy", "1.cells.npy"])
def test_damaged_index_is_skipped_and_repaired(store: Store, file: str) -> None:
    path = folders(store.folder, BOTH)[0] / file
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    assert [problem.path for problem in verify(store.folder).problems] == ["indexes/knn+main+depth-000003"]
    assert "store index --vectors main,depth" in repair(store.folder).actions[0].what
    assert folders(store.folder, BOTH) == []
    assert recall(store, ("main",)) >= 0.985
    build_index(store, "plain", vectors=BOTH)
    assert recall(store) >= 0.985


def test_index_of_another_encoder_is_not_used(store: Store) -> None:
    for path in (store.folder / "columns/depth").iterdir():
        path.unlink()
    third = Space("third", "e" * 64, OTHER.dim)
    with named_vectors_writer(store.folder, "depth", third) as writer:
        vectors = np.random.default_rng(0).normal(size=(ROWS, third.dim))
        writer.put(np.arange(ROWS), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert concatenated_snapshot(store.snapshot(), BOTH)._index is None
    [problem] = verify(store.folder).problems
    assert "vectors of two encoders cannot be compared" in problem.what


def test_unknown_vectors_cannot_be_indexed(store: Store) -> None:
    with pytest.raises(StoreError, match="has no vectors named colour, only main, depth"):
        build_index(store, vectors=("main", "colour"))


def test_rows_without_a_vector_are_named(store: Store) -> None:
    add_rows(store, ROWS + 2)
    first = store.snapshot().column("keys")[ROWS]
    message = rf"2 of 3002 rows have no vector depth, first {first}; .* add-vectors depth --encoder other"
    with pytest.raises(NotEnoughRows, match=message):
        concatenated_snapshot(store.snapshot(), BOTH)


def test_files_whose_rows_all_have_a_vector_are_not_read_for_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rows(store, ROWS + 20)
    fill(store, np.arange(ROWS + 20) >= ROWS + 10)
    missing = open_named_vectors(store.folder, "depth").missing(store.snapshot())
    assert missing.nonzero()[0].tolist() == [*range(ROWS, ROWS + 10)]
    fill(store, missing)
    with store.writer() as writer:
        writer.delete(np.arange(ROWS + 20) % 3 == 0)
    compact(store)
    monkeypatch.setattr("clipfake.store.named_vectors.NamedVectors.shard_vectors", None)
    assert not open_named_vectors(store.folder, "depth").missing(store.snapshot()).any()


def test_vectors_of_any_length_are_indexed_by_their_direction(store: Store) -> None:
    with named_vectors_writer(store.folder, "raw", Space("raw", "f" * 64, DIM, normalised=False)) as writer:
        vectors = writer.snapshot.vectors()
        writer.put(np.arange(ROWS), vectors * np.random.default_rng(2).uniform(1, 9, (ROWS, 1)).astype(np.float32))
    build_index(store, "plain", vectors=("raw",))
    assert verify(store.folder).sound
    snapshot = concatenated_snapshot(store.snapshot(), ("raw",))
    queries = snapshot.vectors(slice(0, 20))
    exact = snapshot.search(queries, 10, recall=1)
    found = snapshot.search(queries, 10)
    assert found.similarity.max() <= 1.001
    assert np.mean([np.isin(e, f).mean() for e, f in zip(exact.rows, found.rows, strict=True)]) >= 0.985
