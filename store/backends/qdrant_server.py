"""A Qdrant server or cluster as a search back end."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, BackendTimeout, BackendUnavailable, MissingExtra
from ..records import Ids, Vectors
from ..space import Space
from .base import BackendFilter
from .qdrant_base import IDS_PER_PAGE, INTEGER_FIELDS, MAX_SHARDS, VECTOR, CollectionLayout, QdrantBackend

COLLECTION = "clipfake"
API_KEY_VARIABLE = "QDRANT_API_KEY"  # read from the environment, so that no key appears on a command line
TIMEOUT = 120  # seconds per request; generous, because an exact search over many rows is slow
UNAVAILABLE_STATUSES = (429, 502, 503)  # of the server, or of a proxy in front of it
TIMEOUT_STATUSES = (408, 504)
POLL_SECONDS = 0.5  # between requests for the state of a server that builds its indexes


class QdrantServer(QdrantBackend):
    """A collection of a Qdrant server or cluster."""

    def __init__(
        self,
        url: str,
        collection: str = COLLECTION,
        layout: CollectionLayout = CollectionLayout(),
        client: Any = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Connect to a server.

        Parameters
        ----------
        client : `QdrantClient` to use (default: a new one for the URL)
        timeout : seconds that one request may take
        """
        try:
            import httpx  # the HTTP library of the client
            import qdrant_client
            from qdrant_client.common.client_exceptions import QdrantException
            from qdrant_client.http.exceptions import ApiException
        except ImportError as e:
            raise MissingExtra("a Qdrant server", "qdrant") from e
        super().__init__(qdrant_client.models, layout, (ApiException, QdrantException, OSError, ValueError))
        self._timeout_error: Any = httpx.TimeoutException
        self._connect_timeout: Any = httpx.ConnectTimeout
        self._connection_errors = (httpx.TransportError, OSError)
        self._url, self._collection = url, collection
        with self._translated_errors():
            self._client = client or qdrant_client.QdrantClient(
                url=url, api_key=os.environ.get(API_KEY_VARIABLE), timeout=math.ceil(timeout), check_compatibility=False
            )

    @property
    def name(self) -> str:
        return f"the collection {self._collection} at {self._url}"

    def exists(self) -> bool:
        with self._translated_errors():
            return bool(self._client.collection_exists(self._collection))

    def remove(self) -> None:
        with self._translated_errors():
            self._client.delete_collection(self._collection)

    def write_note(self, note_id: int, content: dict[str, Any]) -> None:
        with self._translated_errors():
            point = self._models.PointStruct(id=note_id, vector={}, payload=content)
            self._client.upsert(self._collection, [point], wait=True)

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        decimals = {VECTOR: shortest_decimals(vectors)}
        batch = self._models.Batch(ids=ids.tolist(), vectors=decimals, payloads=list(payloads))
        with self._translated_errors():
            self._client.upsert(self._collection, batch, wait=True)

    def drop(self, ids: Sequence[int]) -> None:
        with self._translated_errors():
            self._client.delete(self._collection, self._models.PointIdsList(points=list(ids)), wait=True)

    def drop_shard(self, number: int) -> None:
        with self._translated_errors():
            selector = self._models.FilterSelector(filter=self._shard_filter(number))
            self._client.delete(self._collection, selector, wait=True)

    def count(self, allowed: BackendFilter) -> int:
        with self._translated_errors():
            query_filter = self.query_filter(allowed)
            return int(self._client.count(self._collection, count_filter=query_filter, exact=True).count)

    def build_indexes(self) -> None:
        """Wait without a time limit: building the graph of many rows takes hours."""
        status = self._models.CollectionStatus
        while True:
            with self._translated_errors():
                collection = self._client.get_collection(self._collection)
                if collection.status == status.RED:
                    raise BackendError(
                        f"{self.name} cannot build its indexes ({collection.optimizer_status}); see the server's log"
                    )
                if collection.status == status.GREEN:
                    return
                if collection.status == status.GREY:  # after a restart Qdrant waits for an update before it continues
                    unchanged = self._models.OptimizersConfigDiff()
                    self._client.update_collection(self._collection, optimizers_config=unchanged)
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        self._client.close()

    def _translated(self, error: Exception) -> BackendError:
        source, status = getattr(error, "source", error), getattr(error, "status_code", None)
        detail = str(error).strip()[:200] or type(source).__name__
        timed_out = isinstance(source, self._timeout_error) and not isinstance(source, self._connect_timeout)
        if timed_out or status in TIMEOUT_STATUSES:
            return BackendTimeout(f"{self.name} did not answer in time ({detail}); try again, or check the server load")
        overloaded = status in UNAVAILABLE_STATUSES or hasattr(error, "retry_after_s")
        if overloaded or isinstance(source, self._connection_errors):
            return BackendUnavailable(f"{self.name} cannot be reached ({detail}); is a Qdrant server running there?")
        return BackendError(
            f"{self.name} returned an unexpected response ({detail}); is a Qdrant server running there, "
            f"and is {API_KEY_VARIABLE} set if it needs a key?"
        )

    def _create_collection(self, space: Space) -> None:
        m, layout = self._models, self._layout
        quantization = {
            "": None,
            "int8": m.ScalarQuantization(scalar=m.ScalarQuantizationConfig(type=m.ScalarType.INT8, always_ram=True)),
            "binary": m.BinaryQuantization(binary=m.BinaryQuantizationConfig(always_ram=True)),
        }[layout.quantization]
        params = m.VectorParams(
            size=space.dim,
            distance=m.Distance.DOT,
            datatype=m.Datatype.FLOAT16,
            on_disk=layout.quantization != "",
            quantization_config=quantization,
        )
        threshold = layout.indexing_threshold
        self._client.create_collection(
            self._collection,
            vectors_config={VECTOR: params},
            shard_number=layout.shards,
            replication_factor=layout.replicas,
            hnsw_config=m.HnswConfigDiff(m=layout.m, ef_construct=layout.ef_construct, full_scan_threshold=threshold),
            optimizers_config=m.OptimizersConfigDiff(indexing_threshold=threshold),
            on_disk_payload=True,
        )

    def _indexed_fields(self) -> Sequence[str]:
        return list(self._client.get_collection(self._collection).payload_schema)

    def _create_field_index(self, name: str) -> None:
        kinds = self._models.PayloadSchemaType
        kind = kinds.INTEGER if name in INTEGER_FIELDS else kinds.KEYWORD
        self._client.create_payload_index(self._collection, name, kind, wait=True)

    def _scroll(self, query_filter: Any, offset: Any) -> Any:
        return self._client.scroll(
            self._collection,
            scroll_filter=query_filter,
            limit=IDS_PER_PAGE,
            offset=offset,
            with_payload=False,
            with_vectors=False,
        )

    def _count_by_shard(self) -> Any:
        return self._client.facet(self._collection, "shard", limit=MAX_SHARDS, exact=True)

    def _query_batch(self, queries: npt.NDArray[np.float32], options: dict[str, Any]) -> Any:
        requests = [self._models.QueryRequest(query=query, using=VECTOR, **options) for query in queries.tolist()]
        return [response.points for response in self._client.query_batch_points(self._collection, requests)]

    def _retrieve(self, ids: list[int]) -> Any:
        return self._client.retrieve(self._collection, ids, with_payload=True, with_vectors=False)

    def _has_id(self, ids: Sequence[int]) -> Any:
        return self._models.HasIdCondition(has_id=list(ids))


def shortest_decimals(vectors: Vectors) -> list[list[float]]:
    """Round float16 values to the fewest digits that identify them, which halves the size of the JSON."""
    return [row.tolist() for row in _decimals()[np.asarray(vectors, np.float16).view(np.uint16)]]


@lru_cache(maxsize=1)
def _decimals() -> npt.NDArray[np.float64]:
    """(65536,) the shortest decimal of every float16, indexed by its bits."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return np.array([float(np.format_float_scientific(half)) for half in halves])
