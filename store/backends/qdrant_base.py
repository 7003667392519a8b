"""Common part of the Qdrant back ends: collection layout, filters, requests and the conversion of responses.

A collection holds float16 vectors under the name `image`, compared by inner product as in the store. A point's id is
the row's id. `label`, `source`, `generator`, `category` and `shard` are indexed before the first vector is written:
Qdrant would otherwise build the graph without the edges that filtered searches need. Needs the extra `qdrant`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...errors import StoreError
from ..records import Ids, Vectors
from ..space import Space
from .base import BackendFilter, SearchBackend

VECTOR = "image"
KEYWORD_FIELDS = ("source", "generator", "category")
INTEGER_FIELDS = ("label", "shard")
QUERIES_PER_REQUEST = 64
IDS_PER_PAGE = 10_000
MAX_SHARDS = 1_000_000  # of the store, counted in one request, which takes memory in the back end

QuantizationKind = Literal["", "int8", "binary"]


@dataclass(frozen=True)
class CollectionLayout:
    """Layout of a new collection; an existing collection keeps its own."""

    shards: int | None = None  # Qdrant shards, spread over the machines of a cluster (default: the server's setting)
    replicas: int | None = None  # copies of each Qdrant shard (default: the server's setting)
    quantization: QuantizationKind = ""  # of the copy in memory; the float16 vectors on disk rescore its candidates
    m: int = 16  # edges per row in the HNSW graph
    ef_construct: int = 100  # candidates while the graph is built
    indexing_threshold: int = 10_000  # kilobytes of vectors below which no graph is built


class QdrantBackend(SearchBackend):
    """Base class of the Qdrant back ends. Subclasses send the requests and translate errors."""

    def __init__(self, models: Any, layout: CollectionLayout, client_errors: tuple[type[Exception], ...]) -> None:
        self._models = models  # `qdrant_edge` or `qdrant_client.models`: their request classes share most names
        self._layout = layout
        self._client_errors = client_errors

    def create(self, space: Space) -> None:
        if not self.exists():
            with self._translated_errors():
                self._create_collection(space)
        with self._translated_errors():
            indexed = self._indexed_fields()
            for name in (*INTEGER_FIELDS, *KEYWORD_FIELDS):
                if name not in indexed:
                    self._create_field_index(name)

    def ids_of(self, number: int) -> Ids:
        ids: list[int] = []
        offset: Any = None
        while True:
            with self._translated_errors():
                points, offset = self._scroll(self._shard_filter(number), offset)
            ids += [int(point.id) for point in points]
            if offset is None:
                return np.sort(np.array(ids, np.int64))

    def counts(self) -> dict[int, int]:
        with self._translated_errors():
            return {int(hit.value): int(hit.count) for hit in self._count_by_shard().hits}

    def search(self, queries: Vectors, k: int, allowed: BackendFilter, width: int | None) -> tuple[Ids, Vectors]:
        options = {
            "limit": k,
            "filter": self.query_filter(allowed),
            "params": self._search_params(width, k),
            "with_payload": False,
            "with_vector": False,
        }
        results: list[Sequence[Any]] = []
        for start in range(0, len(queries), QUERIES_PER_REQUEST):
            batch = np.ascontiguousarray(queries[start : start + QUERIES_PER_REQUEST], np.float32)
            with self._translated_errors():
                results += self._query_batch(batch, options)
        ids = np.full((len(results), k), -1, np.int64)
        similarity = np.full((len(results), k), np.nan, np.float32)
        for row, points in enumerate(results):
            ids[row, : len(points)] = [int(point.id) for point in points]
            similarity[row, : len(points)] = [point.score for point in points]
        return ids, similarity

    def payloads(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        with self._translated_errors():
            return {int(point.id): dict(point.payload or {}) for point in self._retrieve(list(ids))}

    def query_filter(self, allowed: BackendFilter) -> Any:
        """Qdrant's form of a filter; None if it selects all points."""
        which, must, must_not = allowed.which, [], []
        for name, values in (
            ("label", [int(label) for label in which.label_numbers]),
            ("source", list(which.source)),
            ("generator", list(which.generator)),
            ("category", list(which.category)),
        ):
            if values:
                must.append(self._matches_any(name, values))
        if which.exclude_source:
            must_not.append(self._matches_any("source", list(which.exclude_source)))
        if allowed.ids is not None:
            must.append(self._has_id(allowed.ids))
        return self._models.Filter(must=must or None, must_not=must_not or None) if must or must_not else None

    def _matches_any(self, field: str, values: list[Any]) -> Any:
        return self._models.FieldCondition(key=field, match=self._models.MatchAny(any=values))

    def _shard_filter(self, number: int) -> Any:
        """Filter for the rows of one of the store's shards."""
        match = self._models.MatchValue(value=number)
        return self._models.Filter(must=[self._models.FieldCondition(key="shard", match=match)])

    def _search_params(self, width: int | None, k: int) -> Any:
        """Search parameters for `width` candidates; 0 is Qdrant's default, None searches exactly."""
        quantization = None
        if self._layout.quantization:  # without oversampling only k candidates are rescored, however wide the search
            oversampling = width / k if width and width > k else None
            quantization = self._models.QuantizationSearchParams(
                ignore=width is None, rescore=True, oversampling=oversampling
            )
        return self._models.SearchParams(hnsw_ef=width or None, exact=width is None, quantization=quantization)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise a BackendError or Locked for an error of the client library."""
        try:
            yield
        except StoreError:
            raise
        except self._client_errors as e:
            raise self._translated(e) from e

    @abstractmethod
    def _translated(self, error: Exception) -> StoreError: ...

    @abstractmethod
    def _create_collection(self, space: Space) -> None: ...

    @abstractmethod
    def _indexed_fields(self) -> Sequence[str]: ...

    @abstractmethod
    def _create_field_index(self, name: str) -> None: ...

    @abstractmethod
    def _scroll(self, query_filter: Any, offset: Any) -> tuple[Sequence[Any], Any]:
        """A page of points, without payload and vector, and the offset of the next page; None after the last."""

    @abstractmethod
    def _count_by_shard(self) -> Any: ...

    @abstractmethod
    def _query_batch(self, queries: npt.NDArray[np.float32], options: dict[str, Any]) -> Sequence[Sequence[Any]]:
        """The scored points of each query; `options` are the other arguments of a QueryRequest."""

    @abstractmethod
    def _retrieve(self, ids: list[int]) -> Sequence[Any]: ...

    @abstractmethod
    def _has_id(self, ids: Sequence[int]) -> Any: ...
