"""Qdrant Edge as an engine: Qdrant in this process, in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendDamaged, Locked, MissingExtra, NotAStore, StoreError
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


class QdrantEdge:
    """A Qdrant Edge shard in a folder. One process at a time may have it open."""

    def __init__(self, folder: Path, layout: CollectionLayout = CollectionLayout()) -> None:
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
        self._update(self._q.UpdateOperation.delete_points_by_filter(of_shard(self._q, number)))

    def ids_of(self, number: int) -> Ids:
        def page(at: Any) -> Any:
            request = self._q.ScrollRequest(
                offset=at, limit=SCROLLED, filter=of_shard(self._q, number), with_payload=False, with_vector=False
            )
            with self._told():
                return self._open().scroll(request)

        return every_id(page)

    def counts(self) -> dict[int, int]:
        with self._told():
            return counted(self._open().facet(self._q.FacetRequest("shard", limit=SHARDS, exact=True)).hits)

    def count(self, allowed: BackendFilter) -> int:
        with self._told():
            return int(self._open().count(self._q.CountRequest(exact=True, filter=conditions(self._q, allowed))))

    def search(self, queries: Vectors, k: int, allowed: BackendFilter, width: int | None) -> tuple[Ids, Vectors]:
        q = self._q
        params, which = parameters(q, width, k, self._layout), conditions(q, allowed)
        answers: list[Any] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            requests = [
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
                answers += self._open().query_batch(q.QueryBatchRequest(requests))
        return as_arrays(answers, k)

    def rows(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        with self._told():
            return payloads(self._open().retrieve(list(ids), True, False))

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
        """Translate its errors, which have no type: all come as Exception."""
        try:
            yield
        except StoreError:
            raise
        except Exception as e:
            if "WAL" in str(e) and "WouldBlock" in str(e):
                raise Locked(f"{self.name} is open in another process; try again when it has ended") from e
            raise BackendDamaged(
                f"{self.name} fails ({str(e)[:200]}); delete the folder and run `clipfake store push` again"
            ) from e
