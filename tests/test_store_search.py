"""Search gives the rows that a plain matrix product gives, whatever is fast about it."""


import numpy as np
import pytest
from clipfake.benchmarks.store_synthetic import space, synthetic
from clipfake.store.bank import Bank
from clipfake.store.search import Matches, nearest
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


def truth(snapshot: Snapshot, queries: np.ndarray, k: int, where: np.ndarray | None = None) -> Matches:
    positions = np.arange(len(snapshot)) if where is None else np.flatnonzero(where)
    return nearest(queries, snapshot.vectors(positions), positions, k)


def recall(found: Matches, true: Matches) -> float:
    """The share of the true neighbours that was found."""
    there = [np.isin(t[t >= 0], f).sum() for t, f in zip(true.rows, found.rows, strict=True)]
    return float(sum(there) / (true.rows >= 0).sum())


@pytest.mark.parametrize("share", [None, 1.0, 0.6, 0.2, 0.01, 0.001])
@pytest.mark.parametrize("kept_bytes", [0, 2**30])
@pytest.mark.parametrize("queries", [1, 700])
def test_exact_search_is_the_plain_matrix_product(
    store: Store, share: float | None, kept_bytes: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.store.bank.PIECE_CELLS", 700 * 256)  # several pieces
    snapshot = store.snapshot()
    where = None if share is None else np.random.default_rng(3).random(ROWS) < share
    asked = snapshot.vectors(slice(0, queries))
    found = Bank(snapshot, "cpu", kept_bytes).search(snapshot, asked, 10, None if where is None else where.nonzero()[0])
    true = truth(snapshot, asked, 10, where)
    assert np.allclose(found.similarity, true.similarity, atol=1e-5, equal_nan=True)
    assert recall(found, true) > 0.999  # rows that are equally near may change places


def test_no_rows_and_no_queries_give_no_matches(store: Store) -> None:
    snapshot = store.snapshot()
    assert (snapshot.search(snapshot.vectors([0]), 3, np.zeros(ROWS, bool)).rows == -1).all()
    assert snapshot.search(np.zeros((0, DIM)), 3).rows.shape == (0, 3)
