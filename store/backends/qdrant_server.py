"""A Qdrant server or cluster as an engine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, BackendTimeout, BackendUnavailable, MissingExtra
from ..records import Ids, Vectors
from ..space import Space
from .base import BackendFilter
from .qdrant_protocol import (
    NUMBERS,
    QUERIES_AT_ONCE,
    SCROLLED,
    SHARDS,
    VECTOR,
    WORDS,
    CollectionLayout,
    as_arrays,
    conditions,
    counted,
    every_id,
    of_shard,
    parameters,
    payloads,
)

COLLECTION = "clipfake"
KEY = "QDRANT_API_KEY"  # environment: a server's key, never on a command line
TIMEOUT = 120  # seconds a request may take: an exact search of many rows is no error
DOWN, SLOW = (429, 502, 503), (408, 504)  # statuses of a server, or of what stands before it, that mean this
POLL = 0.5  # seconds between looks at a server that builds its indexes


class QdrantServer:
    """A collection of a Qdrant server or cluster."""

    def __init__(
        self,
        url: str,
        collection: str = COLLECTION,
        layout: CollectionLayout = CollectionLayout(),
        client: Any = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """`client` is a `QdrantClient` to use instead of one that is made for the URL."""
        try:
            import httpx  # which the client speaks with
            import qdrant_client
            from qdrant_client.common.client_exceptions import QdrantException
            from qdrant_client.http.exceptions import ApiException
        except ImportError as e:
            raise MissingExtra("a Qdrant server", "qdrant") from e
        self._m: Any = qdrant_client.models
        self._errors = (ApiException, QdrantException, OSError, ValueError)
        self._late: Any = httpx.TimeoutException
        self._away = (httpx.TransportError, OSError)
        self._never_there: Any = httpx.ConnectTimeout
        self._url, self._collection, self._layout = url, collection, layout
        with self._told():
            self._client = client or qdrant_client.QdrantClient(
                url=url, api_key=os.environ.get(KEY), timeout=math.ceil(timeout), check_compatibility=False
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
            which = self._m.FilterSelector(filter=of_shard(self._m, number))
            self._client.delete(self._collection, which, wait=True)

    def ids_of(self, number: int) -> Ids:
        def page(at: Any) -> Any:
            with self._told():
                return self._client.scroll(
                    self._collection,
                    scroll_filter=of_shard(self._m, number),
                    limit=SCROLLED,
                    offset=at,
                    with_payload=False,
                    with_vectors=False,
                )

        return every_id(page)

    def counts(self) -> dict[int, int]:
        with self._told():
            return counted(self._client.facet(self._collection, "shard", limit=SHARDS, exact=True).hits)

    def count(self, allowed: BackendFilter) -> int:
        with self._told():
            which = conditions(self._m, allowed)
            return int(self._client.count(self._collection, count_filter=which, exact=True).count)

    def search(self, queries: Vectors, k: int, allowed: BackendFilter, width: int | None) -> tuple[Ids, Vectors]:
        m = self._m
        params, which = parameters(m, width, k, self._layout), conditions(m, allowed)
        answers: list[Any] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            requests = [
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
                answers += [one.points for one in self._client.query_batch_points(self._collection, requests)]
        return as_arrays(answers, k)

    def rows(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        with self._told():
            return payloads(self._client.retrieve(self._collection, list(ids), with_payload=True, with_vectors=False))

    def settle(self) -> None:
        """Waits as long as it takes: a graph of many rows takes hours."""
        status = self._m.CollectionStatus
        while True:
            with self._told():
                collection = self._client.get_collection(self._collection)
                if collection.status == status.RED:
                    raise BackendError(
                        f"{self.name} cannot build its indexes ({collection.optimizer_status}); see its log"
                    )
                if collection.status == status.GREEN:
                    return
                if collection.status == status.GREY:  # waits for a change before it goes on after a restart
                    self._client.update_collection(self._collection, optimizers_config=self._m.OptimizersConfigDiff())
            time.sleep(POLL)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as e:
            raise self._failure(e) from e

    def _failure(self, error: Exception) -> BackendError:
        """Translate the client's error."""
        source, status = getattr(error, "source", error), getattr(error, "status_code", None)
        detail = str(error).strip()[:200] or type(source).__name__
        if status in SLOW or (isinstance(source, self._late) and not isinstance(source, self._never_there)):
            return BackendTimeout(
                f"{self.name} did not answer in time ({detail}); try again, or see what it is busy with"
            )
        busy = status in DOWN or hasattr(error, "retry_after_s")
        if busy or isinstance(source, self._away):
            return BackendUnavailable(f"{self.name} cannot be reached ({detail}); is a Qdrant server running there?")
        return BackendError(
            f"{self.name} does not answer as it should ({detail}); is a Qdrant server running there, "
            f"and is {KEY} set if it needs a key?"
        )


def in_few_digits(vectors: Vectors) -> list[list[float]]:
    """float16 values as numbers with as few digits as tell them apart: JSON of half the size, and the same float16."""
    return [row.tolist() for row in _digits()[np.asarray(vectors, np.float16).view(np.uint16)]]


@lru_cache(maxsize=1)
def _digits() -> npt.NDArray[np.float64]:
    """(65536,) for every float16, by its bits."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return np.array([float(np.format_float_scientific(half)) for half in halves])
