"""Qdrant as an engine: a server or cluster by its URL, or Qdrant Edge, the same engine in this process, in a folder.

Both get the same collection: float16 vectors under the name `image`, compared by inner product as the store does it;
a point's id is the row's id; `label`, `source`, `generator`, `category` and `shard` are indexed before the first vector
comes, or the graph would be built without the edges that filters need. Needs the extra `qdrant`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .block import Vectors
from .engine import Allowed, Engine, Ids
from .errors import Damaged, Locked, MissingExtra, NotAStore, StoreError
from .space import Space

COLLECTION = "clipfake"
KEY = "QDRANT_API_KEY"  # environment: a server's key, never on a command line
VECTOR = "image"
WORDS = ("source", "generator", "category")  # indexed as keywords
NUMBERS = ("label", "shard")  # indexed as integers
QUERIES_AT_ONCE = 64
SCROLLED = 10_000  # ids fetched at a time
SHARDS = 1_000_000  # of the store, counted at once; it takes memory in the engine
TIMEOUT = 120  # seconds a request may take: an exact search of many rows is no error
POLL = 0.5  # seconds between looks at a server that builds its indexes

Quantised = Literal["", "int8", "binary"]


@dataclass(frozen=True)
class Layout:
    """How a new collection is laid out; one that is there stays as it is."""

    shards: int | None = None  # a server's own parts, spread over its machines; None is its default
    replicas: int | None = None  # copies of each
    quantised: Quantised = ""  # kept in memory for searching; the float16 vectors then stay on disk and rank the answer
    edges: int = 16  # of a row in the graph (m)
    care: int = 100  # candidates while it is built (ef_construct)
    plain_kb: int = 10_000  # fewer vectors than fill this are not worth a graph


def engine_at(place: str | Path, collection: str = COLLECTION, layout: Layout = Layout()) -> Engine:
    """A server for an URL (`http://host:6333`), Qdrant Edge for a folder. Close it when done.

    Raises
    ------
    MissingExtra
        The extra `qdrant` is not installed.
    StoreError
        The server does not answer.
    """
    if str(place).startswith(("http://", "https://")):
        return Server(str(place), collection, layout)
    if "://" in str(place):
        raise StoreError(f"{place} is neither http://, https:// nor a folder")
    return Edge(Path(place), layout)


class Edge:
    """A Qdrant Edge shard in a folder. One process at a time may have it open."""

    def __init__(self, folder: Path, layout: Layout = Layout()) -> None:
        try:
            import qdrant_edge
        except ImportError as e:
            raise MissingExtra("Qdrant Edge", "qdrant") from e
        self._q: Any = qdrant_edge
        self._folder, self._layout = folder, layout
        self._shard: Any = None
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not self._config.exists())):
            raise NotAStore(f"{folder} is there already and is no Qdrant Edge shard; name an empty or new folder")

    @property
    def name(self) -> str:
        return f"the Qdrant Edge folder {self._folder}"

    @property
    def _config(self) -> Path:
        return self._folder / "edge_config.json"

    def there(self) -> bool:
        return self._config.exists()

    def create(self, space: Space) -> None:
        q = self._q
        if not self.there():
            whole = self._layout.quantised == ""
            params = q.EdgeVectorParams(
                size=space.dim,
                distance=q.Distance.Dot,
                datatype=q.VectorStorageDatatype.Float16,
                memory=q.Memory.Cached if whole else q.Memory.Cold,
                quantization_config=self._quantisation(),
            )
            # one segment: two halves of a graph take longer to search than the whole
            layout = self._layout
            config = q.EdgeConfig(
                vectors={VECTOR: params},
                hnsw_config=q.HnswIndexConfig(layout.edges, layout.care, layout.plain_kb, memory=q.Memory.Cached),
                optimizers=q.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=layout.plain_kb),
            )
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._told():
                self._shard = q.EdgeShard.create(str(self._folder), config)
        known = self._open().info().payload_schema
        for names, kind in ((NUMBERS, q.PayloadSchemaType.Integer), (WORDS, q.PayloadSchemaType.Keyword)):
            for name in names:
                if name not in known:
                    self._update(q.UpdateOperation.create_field_index(name, kind))

    def _quantisation(self) -> Any:
        q = self._q
        if self._layout.quantised == "int8":
            return q.ScalarQuantizationConfig(type=q.ScalarType.Int8, memory=q.Memory.Pinned)
        if self._layout.quantised == "binary":
            return q.BinaryQuantizationConfig(memory=q.Memory.Pinned)
        return None

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self._folder)

    def note(self, id: int, text: dict[str, Any]) -> None:  # noqa: A002
        self._update(self._q.UpdateOperation.upsert_points([self._q.Point(id, {}, text)]))  # its log keeps the order

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        rows = np.ascontiguousarray(vectors, np.float32)
        points = [
            self._q.Point(one, {VECTOR: vector}, payload)
            for one, vector, payload in zip(ids.tolist(), rows, payloads, strict=True)
        ]
        self._update(self._q.UpdateOperation.upsert_points(points))

    def drop(self, ids: Sequence[int]) -> None:
        self._update(self._q.UpdateOperation.delete_points(list(ids)))

    def drop_shard(self, number: int) -> None:
        self._update(self._q.UpdateOperation.delete_points_by_filter(_of_shard(self._q, number)))

    def ids_of(self, number: int) -> Ids:
        ids: list[int] = []
        at: Any = None
        while True:
            request = self._q.ScrollRequest(
                offset=at, limit=SCROLLED, filter=_of_shard(self._q, number), with_payload=False, with_vector=False
            )
            with self._told():
                found, at = self._open().scroll(request)
            ids += [point.id for point in found]
            if at is None:
                return np.sort(np.array(ids, np.int64))

    def counts(self) -> dict[int, int]:
        with self._told():
            facets = self._open().facet(self._q.FacetRequest("shard", limit=SHARDS, exact=True))
        return {int(hit.value): int(hit.count) for hit in facets.hits}

    def count(self, allowed: Allowed) -> int:
        with self._told():
            return int(self._open().count(self._q.CountRequest(exact=True, filter=conditions(self._q, allowed))))

    def search(self, queries: Vectors, k: int, allowed: Allowed, width: int | None) -> tuple[Ids, Vectors]:
        q = self._q
        params, which = _params(q, width, k, self._layout), conditions(q, allowed)
        answers: list[Any] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            asked = [
                q.QueryRequest(
                    limit=k,
                    query=q.Query.Nearest(np.ascontiguousarray(query, np.float32), using=VECTOR),
                    filter=which,
                    params=params,
                    with_payload=False,
                    with_vector=False,
                )
                for query in queries[start : start + QUERIES_AT_ONCE]
            ]
            with self._told():
                answers += self._open().query_batch(q.QueryBatchRequest(asked))
        return _as_arrays(answers, k)

    def rows(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        with self._told():
            found = self._open().retrieve(list(ids), True, False)
        return {int(point.id): dict(point.payload or {}) for point in found}

    def settle(self) -> None:
        with self._told():
            self._open().flush()
            self._open().optimize()
            self._open().flush()

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def _open(self) -> Any:
        if self._shard is None:
            with self._told():
                self._shard = self._q.EdgeShard.load(str(self._folder))
        return self._shard

    def _update(self, operation: Any) -> None:
        with self._told():
            self._open().update(operation)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Its errors have no type; all come as Exception."""
        try:
            yield
        except StoreError:
            raise
        except Exception as e:
            if "WAL" in str(e) and "WouldBlock" in str(e):
                raise Locked(f"{self.name} is open in another process; try again when it has ended") from e
            raise Damaged(
                f"{self.name} fails ({str(e)[:200]}); delete the folder and run `clipfake store push` again"
            ) from e


class Server:
    """A collection of a Qdrant server or cluster."""

    def __init__(self, url: str, collection: str = COLLECTION, layout: Layout = Layout(), client: Any = None) -> None:
        """`client` is a `QdrantClient` to use instead of one that is made for the URL."""
        try:
            import qdrant_client
            from qdrant_client.common.client_exceptions import QdrantException
            from qdrant_client.http.exceptions import ApiException
        except ImportError as e:
            raise MissingExtra("a Qdrant server", "qdrant") from e
        self._m: Any = qdrant_client.models
        self._errors = (ApiException, QdrantException, OSError, ValueError)
        self._url, self._collection, self._layout = url, collection, layout
        with self._told():
            self._client = client or qdrant_client.QdrantClient(
                url=url, api_key=os.environ.get(KEY), timeout=TIMEOUT, check_compatibility=False
            )

    @property
    def name(self) -> str:
        return f"the collection {self._collection} at {self._url}"

    def there(self) -> bool:
        with self._told():
            return bool(self._client.collection_exists(self._collection))

    def create(self, space: Space) -> None:
        m, layout = self._m, self._layout
        if not self.there():
            params = m.VectorParams(
                size=space.dim,
                distance=m.Distance.DOT,
                datatype=m.Datatype.FLOAT16,
                on_disk=layout.quantised != "",
                quantization_config=self._quantisation(),
            )
            with self._told():
                self._client.create_collection(
                    self._collection,
                    vectors_config={VECTOR: params},
                    shard_number=layout.shards,
                    replication_factor=layout.replicas,
                    hnsw_config=m.HnswConfigDiff(
                        m=layout.edges, ef_construct=layout.care, full_scan_threshold=layout.plain_kb
                    ),
                    optimizers_config=m.OptimizersConfigDiff(indexing_threshold=layout.plain_kb),
                    on_disk_payload=True,
                )
        with self._told():
            known = self._client.get_collection(self._collection).payload_schema
            for names, kind in ((NUMBERS, m.PayloadSchemaType.INTEGER), (WORDS, m.PayloadSchemaType.KEYWORD)):
                for name in names:
                    if name not in known:
                        self._client.create_payload_index(self._collection, name, kind, wait=True)

    def _quantisation(self) -> Any:
        m = self._m
        if self._layout.quantised == "int8":
            return m.ScalarQuantization(scalar=m.ScalarQuantizationConfig(type=m.ScalarType.INT8, always_ram=True))
        if self._layout.quantised == "binary":
            return m.BinaryQuantization(binary=m.BinaryQuantizationConfig(always_ram=True))
        return None

    def remove(self) -> None:
        with self._told():
            self._client.delete_collection(self._collection)

    def note(self, id: int, text: dict[str, Any]) -> None:  # noqa: A002
        with self._told():
            point = self._m.PointStruct(id=id, vector={}, payload=text)
            self._client.upsert(self._collection, [point], wait=True)

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        batch = self._m.Batch(ids=ids.tolist(), vectors={VECTOR: in_few_digits(vectors)}, payloads=list(payloads))
        with self._told():
            self._client.upsert(self._collection, batch, wait=True)

    def drop(self, ids: Sequence[int]) -> None:
        with self._told():
            self._client.delete(self._collection, self._m.PointIdsList(points=list(ids)), wait=True)

    def drop_shard(self, number: int) -> None:
        with self._told():
            which = self._m.FilterSelector(filter=_of_shard(self._m, number))
            self._client.delete(self._collection, which, wait=True)

    def ids_of(self, number: int) -> Ids:
        ids: list[int] = []
        at: Any = None
        while True:
            with self._told():
                found, at = self._client.scroll(
                    self._collection,
                    scroll_filter=_of_shard(self._m, number),
                    limit=SCROLLED,
                    offset=at,
                    with_payload=False,
                    with_vectors=False,
                )
            ids += [int(point.id) for point in found]
            if at is None:
                return np.sort(np.array(ids, np.int64))

    def counts(self) -> dict[int, int]:
        with self._told():
            facets = self._client.facet(self._collection, "shard", limit=SHARDS, exact=True)
        return {int(hit.value): int(hit.count) for hit in facets.hits}

    def count(self, allowed: Allowed) -> int:
        with self._told():
            which = conditions(self._m, allowed)
            return int(self._client.count(self._collection, count_filter=which, exact=True).count)

    def search(self, queries: Vectors, k: int, allowed: Allowed, width: int | None) -> tuple[Ids, Vectors]:
        m = self._m
        params, which = _params(m, width, k, self._layout), conditions(m, allowed)
        answers: list[Any] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            asked = [
                m.QueryRequest(
                    query=np.asarray(query, np.float32).tolist(),
                    using=VECTOR,
                    filter=which,
                    params=params,
                    limit=k,
                    with_payload=False,
                    with_vector=False,
                )
                for query in queries[start : start + QUERIES_AT_ONCE]
            ]
            with self._told():
                answers += [one.points for one in self._client.query_batch_points(self._collection, asked)]
        return _as_arrays(answers, k)

    def rows(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        with self._told():
            found = self._client.retrieve(self._collection, list(ids), with_payload=True, with_vectors=False)
        return {int(point.id): dict(point.payload or {}) for point in found}

    def settle(self) -> None:
        """Waits as long as it takes: a graph of many rows takes hours."""
        status = self._m.CollectionStatus
        while True:
            with self._told():
                told = self._client.get_collection(self._collection)
                if told.status == status.RED:
                    raise StoreError(f"{self.name} cannot build its indexes ({told.optimizer_status}); see its log")
                if told.status == status.GREEN:
                    return
                if told.status == status.GREY:  # waits for a change before it goes on after a restart
                    self._client.update_collection(self._collection, optimizers_config=self._m.OptimizersConfigDiff())
            time.sleep(POLL)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as e:
            raise StoreError(
                f"{self.name} does not answer as it should ({str(e).strip()[:200]}); is a Qdrant server running there, "
                f"and is {KEY} set if it wants a key?"
            ) from e


def in_few_digits(vectors: Vectors) -> list[list[float]]:
    """float16 values as numbers with as few digits as tell them apart: JSON of half the size, and the same float16."""
    return [row.tolist() for row in _digits()[np.asarray(vectors, np.float16).view(np.uint16)]]


@lru_cache(maxsize=1)
def _digits() -> npt.NDArray[np.float64]:
    """(65536,) for every float16, by its bits."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return np.array([float(np.format_float_scientific(half)) for half in halves])


def conditions(models: Any, allowed: Allowed) -> Any:
    """A filter in Qdrant's terms, None for all rows; `models` is either package, they name things alike."""
    which, must, must_not = allowed.which, [], []
    for name, wanted in (
        ("label", [int(label) for label in which.labels]),
        ("source", list(which.sources)),
        ("generator", list(which.generators)),
        ("category", list(which.categories)),
    ):
        if wanted:
            must.append(models.FieldCondition(key=name, match=models.MatchAny(any=wanted)))
    if which.but_sources:
        must_not.append(models.FieldCondition(key="source", match=models.MatchAny(any=list(which.but_sources))))
    if allowed.ids is not None:
        try:
            must.append(models.HasIdCondition(has_id=list(allowed.ids)))
        except TypeError:  # Edge has a word of its own for it
            must.append(models.HasIdCondition(set(allowed.ids)))
    return models.Filter(must=must or None, must_not=must_not or None) if must or must_not else None


def _params(models: Any, width: int | None, k: int, layout: Layout) -> Any:
    quantisation = None
    if layout.quantised:  # all candidates are ranked again by the float16 vectors; a wider search would not help else
        further = width / k if width and width > k else None
        quantisation = models.QuantizationSearchParams(ignore=width is None, rescore=True, oversampling=further)
    return models.SearchParams(hnsw_ef=width or None, exact=width is None, quantization=quantisation)


def _of_shard(models: Any, number: int) -> Any:
    return models.Filter(must=[models.FieldCondition(key="shard", match=models.MatchValue(value=number))])


def _as_arrays(answers: Sequence[Sequence[Any]], k: int) -> tuple[Ids, Vectors]:
    ids = np.full((len(answers), k), -1, np.int64)
    similarity = np.full((len(answers), k), np.nan, np.float32)
    for row, points in enumerate(answers):
        ids[row, : len(points)] = [int(point.id) for point in points]
        similarity[row, : len(points)] = [point.score for point in points]
    return ids, similarity
