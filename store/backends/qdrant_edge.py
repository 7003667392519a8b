"""Qdrant Edge as a search back end: Qdrant in this process, in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendDamaged, Linked, Locked, MissingExtra, NotAStore, StoreError
from ..records import Ids, Vectors
from ..space import Space
from .base import BackendFilter
from .qdrant_base import IDS_PER_PAGE, INTEGER_FIELDS, MAX_SHARDS, VECTOR, CollectionLayout, QdrantBackend

ENTRIES = ("edge_config.json", "segments", "wal")  # what a shard consists of


class QdrantEdge(QdrantBackend):
    """A Qdrant Edge shard in a folder. Only one process at a time can have it open."""

    def __init__(self, folder: Path, layout: CollectionLayout = CollectionLayout()) -> None:
        try:
            import qdrant_edge
        except ImportError as e:
            raise MissingExtra("Qdrant Edge", "qdrant") from e
        super().__init__(qdrant_edge, layout, (Exception,))  # its errors have no type of their own
        self._folder = folder
        self._shard: Any = None
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not self.exists())):
            raise NotAStore(f"{folder} exists and is not a Qdrant Edge shard; name an empty or new folder")
        for path in (folder / name for name in ENTRIES):
            if path.is_symlink():
                raise Linked(f"{path} is a symbolic link, and would be written; name an empty or new folder")

    @property
    def name(self) -> str:
        return f"the Qdrant Edge folder {self._folder}"

    def exists(self) -> bool:
        return (self._folder / "edge_config.json").exists()

    def create(self, space: Space) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        super().create(space)

    def remove(self) -> None:
        """Remove the shard. The folder stays if it holds anything else."""
        self.close()
        for folder in ENTRIES[1:]:
            shutil.rmtree(self._folder / folder, ignore_errors=True)
        (self._folder / ENTRIES[0]).unlink()
        with suppress(OSError):
            self._folder.rmdir()

    def write_note(self, note_id: int, content: dict[str, Any]) -> None:
        self._update(self._models.UpdateOperation.upsert_points([self._models.Point(note_id, {}, content)]))

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        rows = zip(ids.tolist(), np.ascontiguousarray(vectors, np.float32), payloads, strict=True)
        points = [self._models.Point(row_id, {VECTOR: vector}, payload) for row_id, vector, payload in rows]
        self._update(self._models.UpdateOperation.upsert_points(points))

    def drop(self, ids: Sequence[int]) -> None:
        self._update(self._models.UpdateOperation.delete_points(list(ids)))

    def drop_shard(self, number: int) -> None:
        self._update(self._models.UpdateOperation.delete_points_by_filter(self._shard_filter(number)))

    def count(self, allowed: BackendFilter) -> int:
        with self._translated_errors():
            request = self._models.CountRequest(exact=True, filter=self.query_filter(allowed))
            return int(self._open().count(request))

    def build_indexes(self) -> None:
        with self._translated_errors():
            self._open().flush()
            self._open().optimize()
            self._open().flush()

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def _open(self) -> Any:
        if self._shard is None:
            self._shard = self._models.EdgeShard.load(str(self._folder))
        return self._shard

    def _update(self, operation: Any) -> None:
        with self._translated_errors():
            self._open().update(operation)  # the shard's write-ahead log keeps the order

    def _translated(self, error: Exception) -> StoreError:
        if "WAL" in str(error) and "WouldBlock" in str(error):
            return Locked(f"{self.name} is open in another process; try again when that process has ended")
        return BackendDamaged(
            f"{self.name} cannot be used ({str(error)[:200]}); delete the folder and run `clipfake store push` again"
        )

    def _create_collection(self, space: Space) -> None:
        q, layout = self._models, self._layout
        quantization = {
            "": None,
            "int8": q.ScalarQuantizationConfig(type=q.ScalarType.Int8, memory=q.Memory.Pinned),
            "binary": q.BinaryQuantizationConfig(memory=q.Memory.Pinned),
        }[layout.quantization]
        params = q.EdgeVectorParams(
            size=space.dim,
            distance=q.Distance.Dot,
            datatype=q.VectorStorageDatatype.Float16,
            memory=q.Memory.Cold if layout.quantization else q.Memory.Cached,
            quantization_config=quantization,
        )
        threshold = layout.indexing_threshold
        config = q.EdgeConfig(
            vectors={VECTOR: params},
            hnsw_config=q.HnswIndexConfig(layout.m, layout.ef_construct, threshold, memory=q.Memory.Cached),
            # one segment: two graphs of half the rows take longer to search than one
            optimizers=q.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=threshold),
        )
        self._shard = q.EdgeShard.create(str(self._folder), config)

    def _indexed_fields(self) -> Sequence[str]:
        return list(self._open().info().payload_schema)

    def _create_field_index(self, name: str) -> None:
        kinds = self._models.PayloadSchemaType
        kind = kinds.Integer if name in INTEGER_FIELDS else kinds.Keyword
        self._update(self._models.UpdateOperation.create_field_index(name, kind))

    def _scroll(self, query_filter: Any, offset: Any) -> Any:
        request = self._models.ScrollRequest(
            offset=offset, limit=IDS_PER_PAGE, filter=query_filter, with_payload=False, with_vector=False
        )
        return self._open().scroll(request)

    def _count_by_shard(self) -> Any:
        return self._open().facet(self._models.FacetRequest("shard", limit=MAX_SHARDS, exact=True))

    def _query_batch(self, queries: npt.NDArray[np.float32], options: dict[str, Any]) -> Any:
        q = self._models
        requests = [q.QueryRequest(query=q.Query.Nearest(query, using=VECTOR), **options) for query in queries]
        return self._open().query_batch(q.QueryBatchRequest(requests))

    def _retrieve(self, ids: list[int]) -> Any:
        return self._open().retrieve(ids, True, False)

    def _has_id(self, ids: Sequence[int]) -> Any:
        return self._models.HasIdCondition(set(ids))
