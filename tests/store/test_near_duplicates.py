"""The nearest other rows of every row, and groups of near-duplicates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.errors import StoreError
from clipfake.store.maintenance.near_duplicates import all_pairs, find_duplicates
from clipfake.store.records import Block, Rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.store import Store

DIM, ROWS = 8, 500


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = Store.create(tmp_path_factory.mktemp("pairs") / "s", space(DIM))
    with store.writer(rows_per_shard=120) as writer:
        for block in synthetic(ROWS, DIM, size=120):
            writer.append(block)
    return store.snapshot()


def expected_similarity(snapshot: Snapshot, k: int, positions: np.ndarray) -> np.ndarray:
    vectors = snapshot.vectors(positions)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return -np.sort(-similarity, axis=1)[:, :k]


@pytest.mark.parametrize("block_rows", [7, 100, 500, 4096])
@pytest.mark.parametrize("masked", [False, True])
def test_neighbours_match_a_matrix_product(snapshot: Snapshot, tmp_path: Path, block_rows: int, masked: bool) -> None:
    where = snapshot.column("labels") == 1 if masked else None
    positions = np.arange(ROWS) if where is None else np.flatnonzero(where)
    pairs = all_pairs(snapshot, tmp_path / "p", 6, where, block_rows=block_rows)
    assert len(pairs) == len(positions)
    assert np.allclose(pairs.similarity, expected_similarity(snapshot, 6, positions), atol=1e-5)
    assert np.isin(pairs.rows, positions).all()
    assert not (pairs.rows == positions[:, None]).any()
    result = (
        snapshot.vectors(pairs.rows.ravel()).reshape(*pairs.rows.shape, DIM) * snapshot.vectors(positions)[:, None]
    ).sum(-1)
    assert np.allclose(result, pairs.similarity, atol=1e-5)


def test_missing_neighbours_are_marked(snapshot: Snapshot, tmp_path: Path) -> None:
    where = np.arange(ROWS) < 3
    pairs = all_pairs(snapshot, tmp_path / "p", 5, where)
    assert (np.asarray(pairs.rows) >= 0).sum(1).tolist() == [2, 2, 2]
    assert np.isnan(pairs.similarity[:, 2:]).all()


def test_interrupted_run_resumes(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, rows: int) -> None:
        if done >= 200:
            raise Stopped

    with pytest.raises(Stopped):
        all_pairs(snapshot, tmp_path / "p", 4, block_rows=50, on_progress=stop)
    assert json.loads((tmp_path / "p/pairs.json").read_text())["done"] == 200
    steps: list[int] = []
    pairs = all_pairs(snapshot, tmp_path / "p", 4, block_rows=60, on_progress=lambda done, rows: steps.append(done))
    assert steps == [260, 320, 380, 440, 500]
    assert np.allclose(pairs.similarity, expected_similarity(snapshot, 4, np.arange(ROWS)), atol=1e-5)
    monkeypatch.setattr(
        "clipfake.store.maintenance.near_duplicates.ExactSearch", None
    )  # a finished result is only read
    assert np.array_equal(all_pairs(snapshot, tmp_path / "p", 4).rows, pairs.rows)


def test_folder_of_other_rows_is_rejected(snapshot: Snapshot, tmp_path: Path) -> None:
    all_pairs(snapshot, tmp_path / "p", 4)
    for other in ({"k": 5}, {"where": np.arange(ROWS) < 9}):
        with pytest.raises(StoreError, match="name another folder"):
            all_pairs(snapshot, tmp_path / "p", **{"k": 4, **other})  # type: ignore[arg-type]
    (tmp_path / "p/pairs.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        all_pairs(snapshot, tmp_path / "p", 4)


def test_full_disk_is_reported_before_any_work(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StoreError, match="No space left"):
        all_pairs(snapshot, tmp_path / "p", 4)


@pytest.mark.parametrize("damage", ["missing", "truncated", "another"])
def test_damaged_folder_is_reported(snapshot: Snapshot, tmp_path: Path, damage: str) -> None:
    all_pairs(snapshot, tmp_path / "p", 4)
    path = tmp_path / "p/similarity.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        np.save(path, np.zeros((3, 4), np.float32))
    with pytest.raises(StoreError, match=r"similarity\.npy"):
        all_pairs(snapshot, tmp_path / "p", 4)


def test_no_rows_to_compare_is_an_error(snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no rows to compare"):
        all_pairs(snapshot, tmp_path / "p", 4, np.zeros(ROWS, bool))


@pytest.fixture
def doubled(tmp_path: Path) -> Snapshot:
    """Twenty rows far from each other, and three copies."""
    vectors = np.eye(20)
    copies = [vectors[0] + 0.01 * vectors[1], vectors[0], vectors[5]]
    normalised = np.stack([*vectors, *copies])
    normalised /= np.linalg.norm(normalised, axis=1, keepdims=True)
    sources = ["a"] * 10 + ["b"] * 10 + ["a", "c", "b"]
    digests = np.array([i.to_bytes(16, "big") for i in range(1, 24)], "V16")
    digests[19] = digests[10]  # the same bytes, though the vectors differ
    rows = Rows.make([f"{s}/{i}" for i, s in enumerate(sources)], [0] * 22 + [1], sources=sources, digests=digests)
    store = Store.create(tmp_path / "s", space(20))
    with store.writer() as writer:
        writer.append(Block(space(20), rows, normalised.astype(np.float32)))
    return store.snapshot()


def test_copies_are_grouped(doubled: Snapshot, tmp_path: Path) -> None:
    report = find_duplicates(doubled, all_pairs(doubled, tmp_path / "p", 3), 0.99)
    assert [group.keys for group in report.groups] == [("a/0", "a/20", "c/21"), ("a/5", "b/22"), ("b/10", "b/19")]
    assert (report.extra, report.across_sources, report.contradicting) == (4, 2, 1)
    assert [group.contradicts for group in report.groups] == [False, True, False]
    assert (
        find_duplicates(doubled, all_pairs(doubled, tmp_path / "p", 3), 1.1).extra == 1
    )  # equal bytes are always copies


def test_duplicates_command(doubled: Snapshot, tmp_path: Path, capsys: Any) -> None:
    from clipfake.cli import main

    for words in (["--json"], ["--out", str(tmp_path / "kept")]):
        with pytest.raises(SystemExit) as ended:
            main(["store", "duplicates", "--threshold", "0.99", "--store", str(doubled.folder), *words])
        assert not ended.value.code
        out = capsys.readouterr().out
        assert json.loads(out)["extra"] == 4 if "--json" in words else "real and fake" in out
    assert (tmp_path / "kept/pairs.json").is_file()
