"""Every search back end finds the rows that a matrix product finds: exact, FAISS, Qdrant Edge, a Qdrant server.

A live server is tested if QDRANT_URL is set. Otherwise the requests to a server are tested against the local mode of
its client, which is written in Python and searches exactly: this shows that the requests are well formed, not what a
server would find.
"""

import json
import os
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    BadBlock,
    Damaged,
    Locked,
    NoStore,
    NotAStore,
    SpaceMismatch,
    StoreError,
)
from clipfake.store.backends import remote_search as remote
from clipfake.store.backends import search_plan as plan
from clipfake.store.backends.backend_manifest import read_backend_manifest
from clipfake.store.backends.base import BackendFilter, SearchBackend
from clipfake.store.backends.push import PushOptions, push
from clipfake.store.backends.qdrant import open_backend
from clipfake.store.backends.qdrant_base import CollectionLayout
from clipfake.store.backends.qdrant_edge import QdrantEdge
from clipfake.store.backends.qdrant_server import QdrantServer, shortest_decimals
from clipfake.store.backends.remote_search import RemoteStore, remote_searcher
from clipfake.store.backends.search_plan import SearchPlan
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.records import Block, names
from clipfake.store.search.matches import Matches, nearest
from clipfake.store.snapshot import Snapshot
from clipfake.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("qdrant_edge", reason="the extra `qdrant` is not installed")
pytest.importorskip("qdrant_client", reason="the extra `qdrant` is not installed")
import httpx

ROWS, DIM = 4000, 16
GRAPH = CollectionLayout(indexing_threshold=1)  # or Qdrant would scan so few rows instead of building a graph
UNMEASURED = PushOptions(queries=0)
FEW_QUERIES = PushOptions(queries=20)
MIN_RECALL = 0.985  # for a sample of queries; the target of 0.99 is an average
SHARES = (1.0, 0.5, 0.1, 0.05, 0.01, 0.002)


def filled_store(folder: Path, rows: int = ROWS, *, seed: int = 0) -> Store:
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=1000) as writer:
        for block in blocks(rows, seed):
            writer.append(block)
    return store


def blocks(rows: int, seed: int = 0) -> Iterator[Block]:
    """Synthetic rows with random categories `0` … `999`, which give filters of every share."""
    rng = np.random.default_rng([seed, 1])
    for block in synthetic(rows, DIM, seed=seed, size=500):
        draw_image = names([str(i) for i in rng.integers(0, 1000, len(block))])
        yield replace(block, rows=replace(block.rows, categories=draw_image))


def of_share(share: float) -> Filter:
    return Filter(category=[str(i) for i in range(round(1000 * share))]) if share < 1 else Filter()


def expected_matches(snapshot: Snapshot, queries: np.ndarray, k: int, row_filter: Filter) -> Matches:
    positions = np.flatnonzero(row_filter.mask(snapshot))
    return nearest(queries, snapshot.vectors(positions), positions, k)


def recall(matches: Matches, exact: Matches) -> float:
    hits = [np.isin(e[e >= 0], m).sum() for e, m in zip(exact.rows, matches.rows, strict=True)]
    return float(sum(hits) / (exact.rows >= 0).sum())


class Exact:
    """Exact search in the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, store: Store) -> None:
        """Nothing to do."""

    def search(self, store: Store, queries: np.ndarray, k: int, row_filter: Filter) -> Matches:
        snapshot = store.snapshot()
        return snapshot.search(queries, k, row_filter.mask(snapshot), recall=1)

    def close(self) -> None:
        """Nothing is open."""


class Faiss(Exact):
    def fill(self, store: Store) -> None:
        build_index(store, "plain")

    def search(self, store: Store, queries: np.ndarray, k: int, row_filter: Filter) -> Matches:
        snapshot = store.snapshot()
        return snapshot.search(queries, k, row_filter.mask(snapshot))


class Qdrant(Exact):
    """Qdrant Edge."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backend = self.opened()

    def opened(self) -> SearchBackend:
        return open_backend(self.folder / "edge", layout=GRAPH)

    def fill(self, store: Store) -> None:
        push(store.snapshot(), self.backend, FEW_QUERIES)

    def search(self, store: Store, queries: np.ndarray, k: int, row_filter: Filter) -> Matches:
        return remote_searcher(store.snapshot(), self.backend).search(queries, k, row_filter)

    def close(self) -> None:
        self.backend.close()


class LiveServer(Qdrant):
    def opened(self) -> SearchBackend:
        name = f"clipfake-test-{uuid.uuid5(uuid.NAMESPACE_URL, str(self.folder)).hex}"
        return open_backend(os.environ["QDRANT_URL"], name, GRAPH)


BACK_ENDS = {"exact": Exact, "faiss": Faiss, "qdrant edge": Qdrant, "qdrant server": LiveServer}


def opened(kind: str, folder: Path) -> Any:
    if kind == "qdrant server" and not os.environ.get("QDRANT_URL"):
        pytest.skip("QDRANT_URL names no live Qdrant server")
    return BACK_ENDS[kind](folder)


@pytest.fixture(autouse=True)
def no_exact_search_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small stores would be searched exactly, without the index under test."""
    monkeypatch.setattr(plan, "EXACT_ROWS", 20)
    monkeypatch.setattr("clipfake.store.search.ann_index.exact_is_cheaper", lambda *_: False)


@pytest.fixture(scope="module", params=BACK_ENDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Store]]:
    """A back end that holds a store, closed and opened again."""
    folder = tmp_path_factory.mktemp("served")
    store = filled_store(folder / "s")
    first = opened(request.param, folder)
    first.fill(store)
    first.close()
    again = opened(request.param, folder)
    yield again, Store.open(folder / "s")
    if isinstance(again, Qdrant):
        again.backend.remove()
    again.close()


@pytest.mark.parametrize("share", SHARES)
def test_recall_holds_at_every_filter_selectivity(served: tuple[Any, Store], share: float) -> None:
    back_end, store = served
    snapshot, row_filter = store.snapshot(), of_share(share)
    queries = snapshot.vectors(slice(0, ROWS, 80))
    matches = back_end.search(store, queries, 10, row_filter)
    exact = expected_matches(snapshot, queries, 10, row_filter)
    assert recall(matches, exact) >= MIN_RECALL
    assert ((matches.rows < 0) == (exact.rows < 0)).all()
    assert row_filter.mask(snapshot)[matches.rows[matches.rows >= 0]].all()
    assert np.allclose(matches.similarity, exact.similarity, atol=0.01, equal_nan=True)
    own = snapshot.vectors(matches.rows[:, 0])
    assert np.allclose((own * queries).sum(axis=1), matches.similarity[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    "row_filter",
    [
        Filter(label=(0,)),
        Filter(label=(1,), exclude_source=("source-12",)),
        Filter(generator=("",)),
        Filter(source=("source-03", "source-20"), label=(0,)),
        Filter(source=("nowhere",)),
    ],
    ids=str,
)
def test_filters_select_the_same_rows_in_every_back_end(served: tuple[Any, Store], row_filter: Filter) -> None:
    back_end, store = served
    queries = store.snapshot().vectors(slice(0, 20))
    matches = back_end.search(store, queries, 5, row_filter)
    exact = expected_matches(store.snapshot(), queries, 5, row_filter)
    assert ((matches.rows < 0) == (exact.rows < 0)).all()
    if (exact.rows >= 0).any():
        assert recall(matches, exact) >= MIN_RECALL


def test_filter_by_key(served: tuple[Any, Store]) -> None:
    back_end, store = served
    keys = store.snapshot().column("keys")[[5, 700, 3999]].tolist()
    matches = back_end.search(store, store.snapshot().vectors([700]), 5, Filter(key=[*keys, "nobody/knows.jpg"]))
    assert matches.rows[0, 0] == 700
    assert set(matches.rows[0].tolist()) == {5, 700, 3999, -1}


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_deleted_and_added_rows_are_followed(kind: str, tmp_path: Path) -> None:
    back_end, store = opened(kind, tmp_path), filled_store(tmp_path / "s", 2000)
    back_end.fill(store)
    before = store.snapshot().number
    store.delete(Filter(source=("source-03",)))
    with store.writer() as writer:
        for block in blocks(2600):
            writer.append(block)  # the deleted rows come back with new ids
    store.delete(Filter(source=("source-04",)))
    back_end.fill(store)
    for _ in range(2):
        snapshot = store.snapshot()
        queries = snapshot.vectors(slice(0, len(snapshot), 50))
        matches = back_end.search(store, queries, 10, Filter())
        assert recall(matches, expected_matches(snapshot, queries, 10, Filter())) >= MIN_RECALL
        store.undo(before)
        back_end.fill(store)
    if isinstance(back_end, Qdrant):
        back_end.backend.remove()
    back_end.close()


FILL_PROGRAM = """
import sys
from pathlib import Path
from clipfake.store.backends import push as pushing
from clipfake.store.store import Store
sys.path.insert(0, str(Path({tests!r})))
import {module} as tests
pushing.BATCH_ROWS = 100
store = Store.open({folder!r} + "/s")
if {kind!r} == "exact":
    with store.writer(rows_per_shard=100) as writer:
        for block in tests.blocks(tests.ROWS):
            writer.append(block)
            print("under way", flush=True)
elif {kind!r} == "faiss":
    print("under way", flush=True)
    tests.build_index(store, "plain")
else:
    to = tests.BACK_ENDS[{kind!r}](Path({folder!r})).backend
    pushing.push(store.snapshot(), to, on_progress=lambda report: print("under way", report.pushed, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACK_ENDS)
@pytest.mark.parametrize("after", [1, 3, 17])
def test_killed_fill_can_be_resumed(kind: str, after: int, tmp_path: Path) -> None:
    back_end = opened(kind, tmp_path)
    back_end.close()
    store = Store.create(tmp_path / "s", space(DIM)) if kind == "exact" else filled_store(tmp_path / "s")
    path = Path(__file__)
    program = FILL_PROGRAM.format(tests=str(path.parent), module=path.stem, folder=str(tmp_path), kind=kind)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    result = [line for line, _ in zip(child.stdout, range(1 if kind == "faiss" else after), strict=False)]
    child.kill()
    child.wait()
    child.stdout.close()
    assert result
    if kind == "exact":
        with store.writer() as writer:
            for block in blocks(ROWS):
                writer.append(block)
    again = opened(kind, tmp_path)
    if isinstance(again, Qdrant):
        with pytest.raises(StoreError, match="store push"):
            remote_searcher(store.snapshot(), again.backend)
        done = push(store.snapshot(), again.backend, FEW_QUERIES)
        assert (done.pushed + done.kept, done.dropped) == (ROWS, 0)
        assert done.kept >= 100 * (after - 1)
    again.fill(store)
    snapshot = store.snapshot()
    assert len(snapshot) == ROWS
    queries = snapshot.vectors(slice(0, ROWS, 80))
    matches = again.search(store, queries, 10, of_share(0.1))
    assert recall(matches, expected_matches(snapshot, queries, 10, of_share(0.1))) >= MIN_RECALL
    if isinstance(again, Qdrant):
        again.backend.remove()
    again.close()


# Contents of a back end.


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[QdrantEdge]:
    backend = QdrantEdge(tmp_path / "edge", GRAPH)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled_store(tmp_path_factory.mktemp("small") / "s", 1000)


def test_repeated_push_changes_nothing(small: Store, edge: QdrantEdge) -> None:
    first = push(small.snapshot(), edge, FEW_QUERIES)
    second = push(small.snapshot(), edge, FEW_QUERIES)
    assert (first.pushed, first.kept, first.dropped) == (1000, 0, 0)
    assert (second.pushed, second.kept, second.dropped) == (0, 1000, 0)
    assert min(second.recall.values()) >= 0.99
    assert json.loads(json.dumps(second.to_dict()))["rows"] == 1000


def test_payload_indexes_precede_the_first_vector(small: Store, tmp_path: Path) -> None:
    class Watched(QdrantEdge):
        known: set[str] | None = None

        def put(self, *arguments: Any) -> None:
            self.known = self.known or set(self._open().info().payload_schema)
            super().put(*arguments)

    backend = Watched(tmp_path / "edge")
    push(small.snapshot(), backend, UNMEASURED)
    assert backend.known == {"label", "source", "generator", "category", "shard"}
    backend.close()


def test_remote_store_returns_ids_and_descriptions(small: Store, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, FEW_QUERIES)
    snapshot, remote = small.snapshot(), RemoteStore(edge)
    matches = remote.search(snapshot.vectors([7]), 3, Filter(label=(0, 1)))
    assert matches.rows[0, 0] == snapshot.ids[7]
    assert remote.describe([int(matches.rows[0, 0])])[int(snapshot.ids[7])]["key"] == snapshot.column("keys")[7]
    assert np.allclose(matches.similarity, snapshot.search(snapshot.vectors([7]), 3).similarity, atol=0.01)
    with pytest.raises(BadBlock, match="shards"):
        remote.search(snapshot.vectors([7]), 3, Filter(key=("a/b",)))


def test_masks_of_a_label_or_few_rows_are_supported(small: Store, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, FEW_QUERIES)
    snapshot = small.snapshot()
    query_rows, queries = remote_searcher(snapshot, edge), snapshot.vectors(slice(0, 5))
    for mask in (snapshot.column("labels") == 0, np.ones(1000, bool), np.arange(1000) % 3 == 0, np.zeros(1000, bool)):
        assert (query_rows.search(queries, 5, mask).rows == snapshot.search(queries, 5, mask, recall=1).rows).all()


def test_arbitrary_large_mask_is_rejected(small: Store, edge: QdrantEdge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MASK_ROWS", 100)
    push(small.snapshot(), edge, FEW_QUERIES)
    with pytest.raises(BadBlock, match="pass a Filter"):
        remote_searcher(small.snapshot(), edge).search(small.snapshot().vectors([0]), 5, np.arange(1000) % 3 == 0)


def test_stale_back_end_is_rejected(tmp_path: Path, edge: QdrantEdge) -> None:
    store = filled_store(tmp_path / "s", 1000)
    push(store.snapshot(), edge, FEW_QUERIES)
    store.delete(Filter(key=store.snapshot().column("keys")[:1].tolist()))
    with pytest.raises(StoreError, match=r"1000 rows of snapshot \d+, but this is snapshot \d+ with 999 rows"):
        remote_searcher(store.snapshot(), edge)


def test_back_end_of_another_store_is_rejected(tmp_path: Path, small: Store, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, UNMEASURED)
    other = filled_store(tmp_path / "other", 1000, seed=5)
    with pytest.raises(NotAStore, match="another store"):
        push(other.snapshot(), edge)
    assert push(other.snapshot(), edge, PushOptions(queries=0, anew=True)).pushed == 1000


def test_partial_push_of_another_store_is_rejected(tmp_path: Path, small: Store, edge: QdrantEdge) -> None:
    class Stopped(Exception):
        pass

    def stop(_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        push(small.snapshot(), edge, on_progress=stop)
    with pytest.raises(StoreError, match="did not finish"):
        remote_searcher(small.snapshot(), edge)
    with pytest.raises(StoreError, match="did not finish"):
        RemoteStore(edge)
    with pytest.raises(NotAStore, match="another store"):
        push(filled_store(tmp_path / "other", 1000, seed=5).snapshot(), edge)


def test_back_end_of_another_encoder_is_rejected(tmp_path: Path, small: Store, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, UNMEASURED)
    other = Store.create(tmp_path / "other", replace(space(DIM), fingerprint="ab" * 32))
    for do in (push, remote_searcher):
        with pytest.raises(SpaceMismatch, match="two encoders"):
            do(other.snapshot(), edge)


def test_push_restores_rows_deleted_by_others(small: Store, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, UNMEASURED)
    edge.drop(small.snapshot().ids[[3, 500]].tolist())
    assert push(small.snapshot(), edge, UNMEASURED).pushed == 2


def test_push_detects_lost_rows(small: Store, tmp_path: Path) -> None:
    class Losing(QdrantEdge):
        def put(self, ids: Any, vectors: Any, payloads: Any) -> None:
            super().put(ids[1:], vectors[1:], payloads[1:])

    backend = Losing(tmp_path / "edge")
    with pytest.raises(Damaged, match="999 rows of shard 1 after the push instead of 1000"):
        push(small.snapshot(), backend)
    with pytest.raises(StoreError, match="did not finish"):
        remote_searcher(small.snapshot(), backend)
    backend.close()


def test_push_detects_wrong_vectors(small: Store, tmp_path: Path) -> None:
    class Muddled(QdrantEdge):
        def put(self, ids: Any, vectors: Any, payloads: Any) -> None:
            super().put(ids, np.roll(vectors, 1, axis=0), payloads)

    backend = Muddled(tmp_path / "edge")
    with pytest.raises(Damaged, match="does not hold these vectors"):
        push(small.snapshot(), backend)
    backend.close()


def test_foreign_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(NotAStore, match="not a Qdrant Edge shard"):
        open_backend(tmp_path)
    with pytest.raises(NoStore, match="store push"):
        read_backend_manifest(open_backend(tmp_path / "new"))
    with pytest.raises(StoreError, match="neither"):
        open_backend("ftp://host/x")


def test_folder_is_locked_while_open(small: Store, tmp_path: Path, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, UNMEASURED)
    with pytest.raises(Locked, match="another process"):
        push(small.snapshot(), QdrantEdge(tmp_path / "edge"))


def test_damaged_folder_is_reported(small: Store, tmp_path: Path, edge: QdrantEdge) -> None:
    push(small.snapshot(), edge, UNMEASURED)
    edge.close()
    (tmp_path / "edge" / "edge_config.json").write_text("{")
    with pytest.raises(Damaged, match="delete the folder"):
        remote_searcher(small.snapshot(), edge)


# Search width.


def test_poor_graph_is_searched_wider(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "s")
    backend = QdrantEdge(tmp_path / "edge", replace(GRAPH, m=3, ef_construct=4))
    done = push(store.snapshot(), backend)
    assert min(done.recall_unplanned.values()) < 0.97
    assert min(done.recall.values()) >= 0.99
    backend.close()


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_quantized_candidates_are_rescored(tmp_path: Path, small: Store, quantization: Any) -> None:
    backend = QdrantEdge(tmp_path / "edge", replace(GRAPH, quantization=quantization))
    assert min(push(small.snapshot(), backend).recall.values()) >= 0.99
    queries = small.snapshot().vectors(slice(0, 20))
    matches = remote_searcher(small.snapshot(), backend).search(queries, 5, Filter(label=(1,)))
    assert recall(matches, expected_matches(small.snapshot(), queries, 5, Filter(label=(1,)))) >= 0.97
    backend.close()


PLAN = SearchPlan((64, 128, 256), (1.0, 0.5, 0.01), ((0.99, 0.996, 1.0), (0.9, 0.99, 0.995), (0.5, 0.6, 0.7)))


@pytest.mark.parametrize(
    ("recall", "share", "k", "width"),
    [
        (0.98, 1.0, 10, 128),  # the measurement at half the rows applies to all rows too
        (0.99, 1.0, 10, 256),
        (0.99, 1.0, 50, 1280),
        (0.999, 1.0, 10, None),
        (1.0, 1.0, 10, None),
        (0.9, 0.02, 10, None),
        (0.9, 0.1, 10, None),  # between two measured shares the harder one counts
    ],
)
def test_plan_uses_the_hardest_filter_of_similar_share(recall: float, share: float, k: int, width: int | None) -> None:
    assert PLAN.width(recall, share, k) == width
    wider = replace(PLAN, margin=1).width(recall, share, k)
    assert wider is None or (width is not None and wider == 2 * width)


def test_plan_survives_json() -> None:
    assert SearchPlan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN
    assert SearchPlan().width(0.9, 1.0) is None  # without measurements every search is exact


# Filters and requests.


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QdrantEdge, Snapshot]]:
    folder = tmp_path_factory.mktemp("held")
    store = filled_store(folder / "s", 1000)
    backend = QdrantEdge(folder / "edge")
    push(store.snapshot(), backend, UNMEASURED)
    yield backend, store.snapshot()
    backend.close()


def up_to_three(values: list[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), max_size=3).map(tuple)


@given(
    label=up_to_three([0, 1, -1]),
    source=up_to_three(["source-00", "source-12", "source-24", "elsewhere"]),
    generator=up_to_three(["", "generator-12", "generator-24"]),
    category=up_to_three(["0", "17", "999"]),
    exclude_source=up_to_three(["source-12", "source-01"]),
)
@settings(deadline=None, max_examples=60)
def test_back_end_counts_the_rows_of_a_filter(held: tuple[QdrantEdge, Snapshot], **columns: Any) -> None:
    backend, snapshot = held
    assert RemoteStore(backend).count(BackendFilter(Filter(**columns))) == Filter(**columns).mask(snapshot).sum()


def test_empty_filter_adds_no_condition(edge: QdrantEdge) -> None:
    assert edge.query_filter(BackendFilter(Filter())) is None


class Wire:
    """Transport of a client: parses requests as Qdrant's models, which reject unknown fields, and runs them locally."""

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        self.local = QdrantClient(":memory:")
        self.requests: list[tuple[str, Any]] = []

    def client(self) -> Any:
        import httpx
        from qdrant_client import QdrantClient

        return QdrantClient("http://qdrant", check_compatibility=False, transport=httpx.MockTransport(self.answer))

    def answer(self, request: Any) -> Any:
        import httpx
        from pydantic import TypeAdapter
        from qdrant_client import models as m

        _, _, collection, *rest = request.url.path.split("/")
        call = f"{request.method} {'/'.join(rest)}".strip()
        kind: Any = {
            "PUT": m.CreateCollection,
            "PUT index": m.CreateFieldIndex,
            "PUT points": m.PointsBatch | m.PointsList,
            "POST points": m.PointRequest,
            "POST points/delete": m.PointIdsList | m.FilterSelector,
            "POST points/scroll": m.ScrollRequest,
            "POST points/count": m.CountRequest,
            "POST points/query/batch": m.QueryRequestBatch,
            "POST facet": m.FacetRequest,
        }.get(call)
        body = TypeAdapter(kind).validate_json(request.content) if kind else None
        self.requests.append((call, body))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # local mode warns about unsupported options
            result = self.done(call, collection, body)
        outcome = TypeAdapter(Any).dump_python(result, mode="json")
        return httpx.Response(200, json={"result": outcome, "status": "ok", "time": 0.0})

    def done(self, call: str, name: str, body: Any) -> Any:
        local = self.local
        does: dict[str, Callable[[], Any]] = {
            "GET exists": lambda: {"exists": local.collection_exists(name)},
            "GET": lambda: local.get_collection(name),
            "DELETE": lambda: local.delete_collection(name),
            "PUT": lambda: local.create_collection(name, body.vectors),
            "PUT index": lambda: local.create_payload_index(name, body.field_name, body.field_schema),
            "PUT points": lambda: local.upsert(name, getattr(body, "batch", None) or body.points),
            "POST points": lambda: local.retrieve(name, body.ids, body.with_payload),
            "POST points/delete": lambda: local.delete(name, body),
            "POST points/scroll": lambda: self.page(local.scroll(name, body.filter, body.limit, offset=body.offset)),
            "POST points/count": lambda: local.count(name, body.filter),
            "POST points/query/batch": lambda: local.query_batch_points(name, body.searches),
            "POST facet": lambda: local.facet(name, body.key, body.filter, body.limit, body.exact),
        }
        return does[call]()

    def page(self, value: tuple[Any, Any]) -> dict[str, Any]:
        return {"points": value[0], "next_page_offset": value[1]}


def test_server_requests_are_well_formed(tmp_path: Path) -> None:
    wire = Wire()
    backend = QdrantServer("http://qdrant", layout=replace(GRAPH, shards=6, replicas=2), client=wire.client())
    store = filled_store(tmp_path / "s", 200)
    assert push(store.snapshot(), backend, PushOptions(queries=10)).pushed == 200
    calls = [call for call, _ in wire.requests]
    assert calls.count("PUT index") == 5
    assert max(i for i, call in enumerate(calls) if call == "PUT index") < calls.index("PUT points")
    [made] = [body for call, body in wire.requests if call == "PUT"]
    assert (made.shard_number, made.replication_factor, made.vectors["image"].datatype) == (6, 2, "float16")
    store.delete(Filter(source=("source-03",)))
    assert push(store.snapshot(), backend, PushOptions(queries=10)).dropped > 0
    snapshot = store.snapshot()
    queries = snapshot.vectors(slice(0, 5))
    for row_filter in (Filter(), Filter(label=(0,), exclude_source=("source-01",)), Filter(key=("x/y",))):
        matches, exact = (
            remote_searcher(snapshot, backend).search(queries, 5, row_filter),
            expected_matches(snapshot, queries, 5, row_filter),
        )
        assert (matches.rows == exact.rows).all()
    widths = {query.params.hnsw_ef for call, body in wire.requests if call.endswith("batch") for query in body.searches}
    assert {None, 64} <= widths  # exact, and a measured width
    assert RemoteStore(backend).describe([int(snapshot.ids[0])])[int(snapshot.ids[0])]["shard"] == 1
    backend.remove()
    with pytest.raises(NoStore):
        remote_searcher(snapshot, backend)
    backend.close()


def test_foreign_collection_is_rejected(small: Store) -> None:
    from qdrant_client import models as m

    wire = Wire()
    wire.local.create_collection("clipfake", {"text": m.VectorParams(size=4, distance=m.Distance.COSINE)})
    wire.local.upsert("clipfake", [m.PointStruct(id=str(uuid.UUID(int=7)), vector={"text": [1, 0, 0, 0]})])
    backend = QdrantServer("http://qdrant", client=wire.client())
    with pytest.raises(NotAStore, match="not filled by this release"):
        push(small.snapshot(), backend)
    assert wire.local.count("clipfake").count == 1
    backend.close()


def test_shortest_decimals_keep_every_float16() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)][None]
    result = json.dumps(shortest_decimals(finite))
    assert np.array_equal(np.array(json.loads(result), np.float32).astype(np.float16), finite)
    assert len(result) < 0.6 * len(json.dumps(finite.astype(np.float32).tolist()))


def test_unreachable_server_is_reported() -> None:
    backend = open_backend("http://127.0.0.1:9", "somewhere")
    with pytest.raises(BackendUnavailable, match=r"somewhere at http://127\.0\.0\.1:9 cannot be reached \(.*refused"):
        backend.exists()
    backend.close()


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (httpx.ConnectError("no route"), BackendUnavailable),
        (httpx.ConnectTimeout("timed out"), BackendUnavailable),
        (httpx.RemoteProtocolError("disconnected without sending a response"), BackendUnavailable),
        (httpx.ReadTimeout("timed out"), BackendTimeout),
        (httpx.Response(429, headers={"Retry-After": "3"}, json={"status": {"error": "too many"}}), BackendUnavailable),
        (httpx.Response(503), BackendUnavailable),
        (httpx.Response(504), BackendTimeout),
        (httpx.Response(401), BackendError),
        (httpx.Response(500), BackendError),
        (httpx.Response(200, text="<html>"), BackendError),
    ],
    ids=lambda answer: f"{answer.status_code}" if isinstance(answer, httpx.Response) else "",
)
def test_server_failures_have_distinct_error_types(answer: Any, failure: type[StoreError]) -> None:
    from qdrant_client import QdrantClient

    def answered(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    client = QdrantClient("http://qdrant", check_compatibility=False, transport=httpx.MockTransport(answered))
    with pytest.raises(StoreError, match=r"somewhere at http://qdrant") as error:
        QdrantServer("http://qdrant", "somewhere", client=client).count(BackendFilter(Filter()))
    assert type(error.value) is failure
    assert ("QDRANT_API_KEY" in str(error.value)) == (failure is BackendError)


def test_detector_gives_the_same_verdict_with_a_back_end(toy: Any, tmp_path: Path, edge: QdrantEdge) -> None:
    from clipfake.detector.detector import VectorDetector

    push(toy.store.snapshot(), edge, UNMEASURED)
    own = VectorDetector.load(toy.store)
    results: list[int] = []

    def elsewhere(snapshot: Snapshot) -> Any:
        backend = remote_searcher(snapshot, edge)

        class Counted:
            def search(self, queries: Any, k: int, where: Any = None, recall: float = 0.99) -> Matches:
                results.append(len(queries))
                return backend.search(queries, k, where, recall)

        return Counted()

    other = VectorDetector.load(toy.store, searcher_for=elsewhere)
    vectors = toy.encoder.encode([toy.decode(toy.draw_image("gan_b", 70 + i)).pixels for i in range(4)])
    called = [f"{i}.png" for i in range(4)]
    for local, remote_verdict in zip(own.judge(called, vectors), other.judge(called, vectors), strict=True):
        assert local.verdict == remote_verdict.verdict
        assert local.score == pytest.approx(remote_verdict.score, abs=1e-3)
        assert [n.key for n in local.neighbors["fake"]] == [n.key for n in remote_verdict.neighbors["fake"]]
    assert results


def test_mask_of_a_label_without_sources_is_supported(
    small: Store, edge: QdrantEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "EXACT_ROWS", 10)
    monkeypatch.setattr(remote, "MASK_ROWS", 20)
    snapshot = small.snapshot()
    push(snapshot, edge, UNMEASURED)
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    mask = (labels == 1) & (sources != "source-12")
    queries = snapshot.vectors(slice(0, 5))
    matches = remote_searcher(snapshot, edge).search(queries, 5, mask)
    assert recall(matches, nearest(queries, snapshot.vectors(mask), np.flatnonzero(mask), 5)) >= 0.95
    with pytest.raises(BadBlock, match="pass a Filter"):
        remote_searcher(snapshot, edge).search(queries, 5, mask & (np.arange(len(mask)) % 2 == 0))
