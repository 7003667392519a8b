"""Choosing a smaller bank: what is kept of each source, and that everything of a kept row is copied."""

from pathlib import Path

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.cli import main
from clipfake.errors import InvalidOption, NotEnoughRows, StoreError
from clipfake.store.exchange.copy_rows import copy_rows
from clipfake.store.maintenance.curate import choose_rows, coverage, curate, quotas, source_groups
from clipfake.store.maintenance.facility_location import PART_ROWS, choose_representatives, facility_location
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors
from clipfake.store.records import FAKE, REAL, Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store

DIM, ROWS = 8, 600
DEPTH = Space("depth", "d" * 64, 3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ten real and fifteen fake sources of about 24 rows, with thumbnails, and named vectors of two thirds of them."""
    store = Store.create(tmp_path / "store", space(DIM))
    with store.writer(rows_per_shard=250) as writer:
        for block in synthetic(ROWS, DIM, size=250):
            thumbnails = tuple(key.encode() for key in block.rows.keys.tolist())
            writer.append(Block(block.space, block.rows, block.vectors, thumbnails))
    with named_vectors_writer(store.folder, "depth", DEPTH) as named:
        some = np.arange(0, ROWS * 2 // 3)
        named.put(some, depth_of(some))
    return store


def depth_of(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows + 1, rows % 7, -rows], axis=1).astype(np.float32) / 100


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def represented(vectors: np.ndarray, chosen: np.ndarray) -> float:
    """Sum of the similarity of each row to the nearest chosen one."""
    return float((vectors @ vectors[chosen].T).max(1).sum())


def test_representatives_are_those_of_the_plain_greedy_choice() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(60, 5)))
    plain: list[int] = []
    for _ in range(12):
        gains = [represented(vectors, np.array([*plain, row])) for row in range(len(vectors))]
        plain.append(int(np.argmax(gains)))
    assert facility_location(vectors, 12).tolist() == plain


def test_representatives_cover_every_cluster_before_any_twice() -> None:
    rng = np.random.default_rng(1)
    centres = unit(rng.normal(size=(9, 16)))
    cluster = np.repeat(np.arange(9), [400, 200, 100, 50, 50, 30, 30, 20, 20])
    vectors = unit(centres[cluster] + 0.02 * rng.normal(size=(len(cluster), 16)))
    assert sorted(cluster[facility_location(vectors, 9)].tolist()) == list(range(9))
    assert len(set(cluster[rng.choice(len(vectors), 9, replace=False)].tolist())) < 9


def test_copies_are_chosen_last() -> None:
    vectors = unit(np.random.default_rng(2).normal(size=(20, 4)))
    repeated = np.repeat(vectors, 5, axis=0)
    assert len(set((facility_location(repeated, 20) // 5).tolist())) == 20
    assert len(set(facility_location(repeated, 100).tolist())) == 100


def test_rows_of_a_large_source_are_compared_in_parts() -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(2 * PART_ROWS + 5, 4)))
    read = []

    def vectors_of(rows: np.ndarray) -> np.ndarray:
        read.append(len(rows))
        return np.asarray(vectors[rows])

    chosen = choose_representatives(len(vectors), 100, vectors_of, rng)
    assert len(read) == 3
    assert max(read) <= PART_ROWS
    assert len(set(chosen.tolist())) == 100
    assert (np.diff(chosen) > 0).all()
    drawn = rng.choice(len(vectors), 100, replace=False)
    assert represented(vectors, chosen) > represented(vectors, drawn)
    read.clear()
    assert len(choose_representatives(len(vectors), 3, vectors_of, rng)) == 3
    assert read == [PART_ROWS]  # too few are wanted to compare all


def test_classes_and_sources_have_equal_shares(store: Store) -> None:
    snapshot = store.snapshot()
    groups = source_groups(snapshot)
    chosen = choose_rows(snapshot, groups, 300)
    sizes = {label: [len(own) for g, own in zip(groups, chosen, strict=True) if g.label == label] for label in (0, 1)}
    assert [sum(sizes[label]) for label in (REAL, FAKE)] == [150, 150]
    assert sizes[FAKE] == [10] * 15
    assert sizes[REAL] == [15] * 10
    assert sum(quotas(groups, 10 * ROWS)) == ROWS
    again = choose_rows(snapshot, groups, 300)
    assert all(np.array_equal(one, other) for one, other in zip(chosen, again, strict=True))
    with pytest.raises(InvalidOption, match="25 sources"):
        choose_rows(snapshot, groups, 24)


def test_everything_of_a_kept_row_is_copied(store: Store, tmp_path: Path) -> None:
    report = curate(store, tmp_path / "small", 200)
    assert report.kept == 200
    assert sum(source.kept for source in report.sources) == 200
    before, after = store.snapshot(), Store.open(tmp_path / "small").snapshot()
    assert len(before) == ROWS  # nothing is deleted
    positions = before.find(after.column("keys"))
    assert (positions >= 0).all()
    for name, column in vars(before.rows).items():
        assert np.array_equal(getattr(after.rows, name), column[positions])
    assert np.array_equal(after.vectors(dtype=np.float16), before.vectors(positions, np.float16))
    assert after.thumbnails(np.arange(200)) == tuple(key.encode() for key in after.column("keys").tolist())
    depth = open_named_vectors(after.folder, "depth")
    assert depth.space == DEPTH
    assert np.array_equal(depth.missing(after), positions >= ROWS * 2 // 3)
    present = ~depth.missing(after)
    own = depth.vectors(after, np.flatnonzero(present))
    assert np.array_equal(own, depth_of(positions[present]).astype(np.float16).astype(np.float32))
    assert verify(tmp_path / "small").sound


def test_reported_radius_is_the_largest_distance(store: Store, tmp_path: Path) -> None:
    report = curate(store, tmp_path / "small", 100)
    snapshot, small = store.snapshot(), Store.open(tmp_path / "small").snapshot()
    vectors, kept = unit(snapshot.vectors()), unit(small.vectors())
    for source in report.sources:
        own = vectors[snapshot.column("sources") == source.source]
        nearest = 1 - (own @ kept[small.column("sources") == source.source].T).max(1)
        assert source.radius == pytest.approx(nearest.max(), abs=2e-4)
        assert source.mean_distance == pytest.approx(nearest.mean(), abs=2e-4)
        assert source.rows == len(own)
    assert (coverage(snapshot, np.arange(9), np.arange(9)) < 1e-3).all()


def test_copying_again_completes_and_never_mixes(store: Store, tmp_path: Path) -> None:
    snapshot = store.snapshot()
    copy_rows(snapshot, np.arange(100), tmp_path / "copy")
    assert len(copy_rows(snapshot, np.arange(150), tmp_path / "copy")) == 150
    with pytest.raises(StoreError, match="holds other rows"):
        copy_rows(snapshot, np.arange(50), tmp_path / "copy")
    with pytest.raises(StoreError, match="the store itself"):
        curate(store, store.folder, 100)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a store"):
        curate(store, tmp_path / "notes", 100)
    with pytest.raises(NotEnoughRows, match="have no vector depth"):
        curate(store, tmp_path / "small", 100, vectors=("depth",))


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", space(DIM))
    vectors = unit(np.random.default_rng(0).normal(size=(30, DIM)))
    labels = np.repeat([0, 1, -1], 10)
    rows = Rows.make(keys=[f"s/{i}" for i in range(30)], labels=labels, sources=["s"] * 30)
    with store.writer() as writer:
        writer.append(Block(space(DIM), rows, vectors))
    report = curate(store, tmp_path / "small", 8)
    assert (report.kept, report.unlabelled, report.rows) == (8, 10, 30)
    assert [(source.label, source.kept) for source in report.sources] == [("real", 4), ("fake", 4)]
    empty = Store.create(tmp_path / "empty", space(DIM))
    with pytest.raises(NotEnoughRows, match="no labelled rows"):
        curate(empty, tmp_path / "none", 8)
    assert not (tmp_path / "none").exists()


def test_curate_from_the_command_line(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["store", "curate", "--rows", "100", "--to", str(tmp_path / "small"), "--store", str(store.folder)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    out, messages = capsys.readouterr()
    assert "100 of 600 rows" in out
    assert "clipfake train --store" in messages
