"""Searches return the rows that a plain matrix product returns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.store.maintenance.build_index import Drift, build_index, kind_for
from clipfake.store.search import ann_index
from clipfake.store.search.ann_index import Kind, exact_is_cheaper, folders
from clipfake.store.search.exact import ExactSearch
from clipfake.store.search.ivf import ProbeBudget, probes
from clipfake.store.search.matches import Matches, nearest
from clipfake.store.snapshot import Snapshot
from clipfake.store.store import Store

ROWS, DIM = 3000, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.create(tmp_path_factory.mktemp("search") / "s", space(DIM))
    with store.writer(rows_per_shard=700) as writer:
        for block in synthetic(ROWS, DIM, size=700):
            writer.append(block)
    return store


def expected_matches(snapshot: Snapshot, queries: np.ndarray, k: int, where: np.ndarray | None = None) -> Matches:
    positions = np.arange(len(snapshot)) if where is None else np.flatnonzero(where)
    return nearest(queries, snapshot.vectors(positions), positions, k)


def recall(approximate: Matches, exact: Matches) -> float:
    """Share of the true neighbours that were found."""
    hits = [np.isin(t[t >= 0], f).sum() for t, f in zip(exact.rows, approximate.rows, strict=True)]
    return float(sum(hits) / (exact.rows >= 0).sum())


@pytest.mark.parametrize("share", [None, 1.0, 0.6, 0.2, 0.01, 0.001])
@pytest.mark.parametrize("kept_bytes", [0, 2**30])
@pytest.mark.parametrize("queries", [1, 700])
def test_exact_search_equals_plain_matrix_product(
    store: Store, share: float | None, kept_bytes: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.store.search.exact.PIECE_CELLS", 700 * 256)  # several pieces
    snapshot = store.snapshot()
    where = None if share is None else np.random.default_rng(3).random(ROWS) < share
    query_rows = snapshot.vectors(slice(0, queries))
    exact = ExactSearch(snapshot, "cpu", kept_bytes)
    found = exact.search(snapshot, query_rows, 10, None if where is None else where.nonzero()[0])
    true = expected_matches(snapshot, query_rows, 10, where)
    assert np.allclose(found.similarity, true.similarity, atol=1e-5, equal_nan=True)
    assert recall(found, true) > 0.999  # ties may be in another order


@pytest.mark.parametrize("queries", [5, 700])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.4, 0.3), (0.9, 0.8), (0.02, 1.0)])
def test_search_each_equals_separate_searches(
    store: Store, shares: tuple[float, float], queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.store.search.exact.PIECE_CELLS", 700 * 256)
    snapshot = store.snapshot()
    draws = np.random.default_rng(3).random(ROWS)
    wheres = [draws < shares[0], draws >= 1 - shares[1]]
    query_rows = snapshot.vectors(slice(0, queries))
    found = ExactSearch(snapshot, "cpu").search_each(snapshot, query_rows, 10, [where.nonzero()[0] for where in wheres])
    for matches, where in zip(found, wheres, strict=True):
        true = expected_matches(snapshot, query_rows, 10, where)
        assert np.allclose(matches.similarity, true.similarity, atol=1e-5, equal_nan=True)
        assert recall(matches, true) > 0.999


def test_no_rows_or_no_queries_give_no_matches(store: Store) -> None:
    snapshot = store.snapshot()
    assert (snapshot.search(snapshot.vectors([0]), 3, np.zeros(ROWS, bool)).rows == -1).all()
    assert snapshot.search(np.zeros((0, DIM)), 3).rows.shape == (0, 3)


def filled_store(folder: Path, rows: int = 6000, first: int = 0) -> Store:
    store = Store.create(folder, space(DIM))
    with store.writer() as writer:
        for block in synthetic(rows, DIM, size=1000):
            writer.append(block)
    return store


@pytest.fixture(scope="module", params=["plain", "quantized"])
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = filled_store(tmp_path_factory.mktemp(request.param) / "s")
    built = build_index(store, request.param)
    assert [label.kind for label in built.labels] == [request.param] * 2
    assert min(min(label.recall.values()) for label in built.labels) >= 0.98
    return store


@pytest.fixture
def always_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the index even where exact search would be cheaper."""
    monkeypatch.setattr("clipfake.store.search.ann_index.exact_is_cheaper", lambda *_: False)


def filters(snapshot: Snapshot) -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(5)
    shares = {f"{share}": rng.random(len(snapshot)) < share for share in (0.9, 0.5, 0.1, 0.03, 0.01, 0.001)}
    real, sources, categories = (snapshot.column(name) for name in ("labels", "sources", "categories"))
    return {
        "all": None,
        **shares,
        "real": real == 0,
        "one source": sources == "source-03",
        "all but one source": sources != "source-03",
        "one category": categories == "category-001",
        "a rare category": categories == "category-200",
    }


@pytest.mark.usefixtures("always_indexed")
def test_recall_holds_for_filters_of_every_selectivity(indexed: Store) -> None:
    snapshot = indexed.snapshot()
    queries = np.random.default_rng(6).choice(len(snapshot), 60, replace=False)
    vectors = snapshot.vectors(queries)
    for name, where in filters(snapshot).items():
        if where is not None and not where.any():
            continue
        found = snapshot.search(vectors, 10, where)
        true = expected_matches(snapshot, vectors, 10, where)
        assert recall(found, true) >= 0.985, name
        assert ((found.rows < 0) == (true.rows < 0)).all(), name
        if where is not None:
            assert where[found.rows[found.rows >= 0]].all(), name
        rows, similarity = snapshot.vectors(found.rows[:, 0]), found.similarity[:, 0]
        assert np.allclose((rows * vectors).sum(axis=1), similarity, atol=1e-5), name


@pytest.mark.usefixtures("always_indexed")
def test_single_queries_match_a_batch(indexed: Store) -> None:
    snapshot = indexed.snapshot()
    vectors, where = snapshot.vectors(slice(0, 5)), np.arange(len(snapshot)) % 3 > 0
    together = snapshot.search(vectors, 10, where)
    assert [snapshot.search(v, 10, where).rows[0].tolist() for v in vectors] == together.rows.tolist()


@pytest.mark.usefixtures("always_indexed")
def test_recall_of_one_is_exact(indexed: Store) -> None:
    snapshot = indexed.snapshot()
    vectors = snapshot.vectors(slice(0, 20))
    assert recall(snapshot.search(vectors, 10, recall=1), expected_matches(snapshot, vectors, 10)) == 1


@pytest.mark.usefixtures("always_indexed")
@pytest.mark.parametrize("kind", ["plain", "quantized"])
def test_stale_index_is_complemented_and_then_extended(tmp_path: Path, kind: Kind) -> None:
    store = filled_store(tmp_path / "s", 4000)
    first = build_index(store, kind)
    with store.writer() as writer:
        writer.delete(np.arange(4000) % 50 == 0)
        for block in synthetic(4600, DIM, size=1000):
            writer.append(block)
    snapshot = store.snapshot()
    vectors = snapshot.vectors(slice(3000, 4600, 20))
    assert recall(snapshot.search(vectors, 10), expected_matches(snapshot, vectors, 10)) >= 0.985
    second = build_index(store, kind)
    assert (first.action, second.action) == ("built", "added")
    assert sum(label.rows for label in second.labels) == 4680  # deleted rows stay until the index is rebuilt
    assert [path.name for path in folders(store.folder)] == [f"knn-{snapshot.number:06d}"]
    snapshot = store.snapshot()
    assert recall(snapshot.search(vectors, 10), expected_matches(snapshot, vectors, 10)) >= 0.985
    assert build_index(store, kind).action == "fresh"


def test_few_rows_need_no_index(store: Store) -> None:
    built = build_index(store)
    assert (built.action, built.labels) == ("built", ())


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        ({}, "fresh"),
        ({"rows": 1100}, "add"),
        ({"rows": 2100}, "rebuild"),
        ({"dead": 300}, "rebuild"),
        ({"rows": 1100, "added_misfit": 0.3}, "rebuild"),
    ],
)
def test_index_is_rebuilt_when_it_has_drifted(changes: dict[str, int], action: str) -> None:
    initial = {"rows": 1000, "indexed": 1000, "dead": 0, "trained_rows": 1000, "misfit": 0.2, "added_misfit": 0.2}
    assert Drift(**{**initial, **changes}).verdict()[0] == action  # type: ignore[arg-type]


def test_index_kind_depends_on_the_number_of_rows() -> None:
    assert [kind_for(n) for n in (100, 100_000, 100_000_000)] == ["exact", "plain", "quantized"]
    assert kind_for(100, "quantized") == "quantized"


def test_exact_search_is_cheaper_for_many_queries_over_few_rows() -> None:
    assert exact_is_cheaper(1, 1000, 1000) is False or exact_is_cheaper(1, 900, 1000)
    assert exact_is_cheaper(1000, 100_000, 20_000)
    assert not exact_is_cheaper(1, 500_000, 20_000)


def test_nearest_cells_are_read_until_they_hold_enough_rows() -> None:
    near = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
    counts = np.array([5, 0, 10, 20])
    assert probes(near, counts, 5).tolist() == [[0], [3]]
    assert probes(near, counts, 6).tolist() == [[0, 2], [3, -1]]
    assert probes(near, counts, 999).tolist() == [[0, 2, 3], [3, 2, 0]]
    assert probes(near, np.zeros(4, int), 9).shape == (2, 0)


def test_effort_does_not_decrease_with_recall() -> None:
    effort = ProbeBudget((1.0, 0.1), (0.9, 0.99, 0.995, 1.0), ((10, 50, 80, 400), (8, 60, 90, 300)))
    assert effort.for_recall(0.99, 1.0) == 80  # half the misses aimed at
    assert effort.for_recall(0.5, 0.1) == 10  # a quarter more than measured
    assert effort.for_recall(0.9999, 0.05) == 375  # no fewer below the smallest share
    assert effort.for_recall(0.9999, 10**-0.5) == pytest.approx(1.25 * (400 * 300) ** 0.5, abs=1)  # halfway between


@pytest.mark.parametrize("where", ["index.json", "0.faiss", "1.ids.npy", "0.cells.npy"])
@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
def test_damaged_index_is_skipped(tmp_path: Path, where: str, how: str) -> None:
    store = filled_store(tmp_path / "s", 1000)
    build_index(store, "plain")
    path = folders(store.folder)[0] / where
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        content[len(content) // 3] ^= 4
        path.write_bytes(content if how == "flipped" else content[:-1])
    snapshot = store.snapshot()
    queries = snapshot.vectors(slice(0, 5))
    assert recall(snapshot.search(queries, 10), expected_matches(snapshot, queries, 10)) == 1


def test_index_replaced_while_opening_is_still_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "s", space(8))
    with store.writer() as writer:
        for block in synthetic(600, 8, size=300):
            writer.append(block)
    build_index(store, "plain")

    def open_with_builder(folder: Path, *more: Any, real: Any = ann_index.open_index, **options: Any) -> Any:
        monkeypatch.undo()
        with store.writer() as writer:
            writer.delete(np.arange(600) < 5)
        build_index(store, "plain", anew=True)
        return real(folder, *more, **options)

    monkeypatch.setattr(ann_index, "open_index", open_with_builder)
    attached = ann_index.attach(store.snapshot())
    assert attached is not None
    assert attached.number == store.snapshot().number


def test_index_without_live_rows_finds_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", space(4))
    with store.writer() as writer:
        for block in synthetic(60, 4):
            writer.append(block)
    build_index(store, "plain", anew=True)
    with store.writer() as writer:
        writer.delete(np.ones(60, bool))
    for where in (None, np.zeros(0, bool)):
        found = store.snapshot().search(np.ones((2, 4), np.float32), 3, where)
        assert (found.rows == -1).all()
