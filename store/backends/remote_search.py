"""Search a filled back end: together with the shards (`remote_searcher`) or without them (`RemoteStore`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import BackendError, BadBlock
from ..filter import Filter
from ..records import Ids, Mask, Vectors, distinct
from ..search.ann_index import rescore
from ..search.matches import Matches, Positions
from ..snapshot import Snapshot
from .backend_manifest import BackendManifest, content_of, read_backend_manifest
from .base import BackendFilter, SearchBackend
from .search_plan import exactly, fetched

MAX_EXCLUDED_SOURCES = 50  # in the filter that replaces a mask
MASK_ROWS = 100_000  # up to this many rows, a mask that is not a filter is searched exactly in the shards


def remote_searcher(snapshot: Snapshot, backend: SearchBackend) -> RemoteSearcher:
    """Searcher of a snapshot that uses a back end.

    Raises
    ------
    NoStore, NotAStore, SpaceMismatch
    BackendError
        The back end holds other rows than the snapshot, or only part of them because a push did not finish.
    """
    manifest = read_backend_manifest(backend)
    snapshot.space.require(manifest.space, backend.name)
    remote = RemoteStore(backend, manifest)
    if manifest.content != content_of(snapshot.manifest.parts):
        raise BackendError(
            f"{backend.name} holds {manifest.rows} rows of snapshot {manifest.snapshot}, but this is snapshot "
            f"{snapshot.number} with {len(snapshot)} rows; run `clipfake store push` to bring it up to date"
        )
    return RemoteSearcher(snapshot, remote)


class RemoteStore:
    """A filled back end without the shards: results are row ids and the back end's own similarities."""

    def __init__(self, backend: SearchBackend, manifest: BackendManifest | None = None) -> None:
        """Raises what `read_backend_manifest` raises, and BackendError if a push did not finish."""
        self.backend = backend
        self.manifest = manifest or read_backend_manifest(backend)
        if not self.manifest.complete:
            raise BackendError(f"a push to {backend.name} did not finish; run `clipfake store push` again to continue")
        self._counts: dict[str, int] = {}  # by the filter's repr

    def search(self, queries: Vectors, k: int, which: Filter = Filter(), recall: float = 0.99) -> Matches:
        """Search the k nearest rows of each query that a filter allows; `rows` of the result are ids for `describe`."""
        if which.key:
            raise BadBlock("a filter by key needs the shards; search with the store, or filter by source")
        return self.nearest(queries, k, BackendFilter(which), recall)

    def nearest(self, queries: Vectors, k: int, allowed: BackendFilter, recall: float) -> Matches:
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if queries.shape[1] != self.manifest.space.dim:
            raise BadBlock(
                f"queries have {queries.shape[1]} dimensions, but {self.backend.name} holds {self.manifest.space}"
            )
        result = Matches.none(len(queries), k)
        count = self.count(allowed)
        if not count or not len(queries):
            return result
        ids, similarity = self.backend.search(queries, min(k, count), allowed, self.width(count, k, recall))
        return result.merge(Matches(ids, np.asarray(similarity, np.float32)), k)

    def width(self, count: int, k: int, recall: float = 0.99) -> int | None:
        """Number of candidates for a search in `count` allowed rows; None if it is exact."""
        return None if exactly(count) else self.manifest.plan.width(recall, count / self.manifest.rows, k)

    def describe(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Id -> key, label, source, generator and category of these rows."""
        return self.backend.payloads(ids)

    def count(self, allowed: BackendFilter) -> int:
        """Count the allowed rows; the count of a filter is cached."""
        which = allowed.which
        if allowed.ids is not None:
            return self.backend.count(allowed)
        if which.selects_all:
            return self.manifest.rows
        if which == Filter(exclude_source=which.exclude_source):  # counted directly, it would include the notes
            return self.manifest.rows - self.count(BackendFilter(Filter(source=which.exclude_source)))
        if (name := repr(which)) not in self._counts:
            self._counts[name] = self.backend.count(allowed)
        return self._counts[name]


class RemoteSearcher:
    """Searcher of one snapshot: the back end finds candidates, the vectors in the shards rank them."""

    def __init__(self, snapshot: Snapshot, remote: RemoteStore) -> None:
        self.snapshot, self.remote = snapshot, remote

    def search(self, queries: Vectors, k: int, where: Filter | Mask | None = None, recall: float = 0.99) -> Matches:
        """Search as `Snapshot.search` does.

        A mask may select all rows, the rows of one label with or without some sources, or few rows; BadBlock is raised
        for any other.
        """
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if not isinstance(where, Filter | None):
            equivalent = self._filter_of_mask(np.asarray(where))
            if equivalent is None:
                return self.snapshot.search(queries, k, where, recall=1)
            where = equivalent
        which = where or Filter()
        ids = None
        if which.key:
            positions = self.snapshot.find(list(which.key))
            ids = tuple(self.snapshot.ids[positions[positions >= 0]].tolist())
        allowed = BackendFilter(replace(which, key=()), ids)
        candidates = self.remote.nearest(queries, fetched(k), allowed, recall)
        return rescore(self.snapshot, queries, positions_of(self.snapshot, candidates.rows), k)

    def _filter_of_mask(self, mask: Mask) -> Filter | None:
        """The filter that selects the rows of a mask; None if the mask is better searched in the shards."""
        count = int(np.count_nonzero(mask))
        if mask.shape != (len(self.snapshot),) or mask.dtype != np.bool_ or exactly(count):
            return None
        if count == len(mask):
            return Filter()
        labels = self.snapshot.column("labels")
        label = int(labels[np.argmax(mask)])
        if (equivalent := self._label_without_sources(mask, label)) is not None:
            return equivalent
        if count <= MASK_ROWS:
            return None
        raise BadBlock(f"a search back end cannot apply a mask of {count} rows; pass a Filter instead")

    def _label_without_sources(self, mask: Mask, label: int) -> Filter | None:
        """The filter for a label without some sources, if it selects exactly the rows of the mask."""
        differing = (self.snapshot.column("labels") == label) ^ mask
        excluded = distinct(self.snapshot.column("sources")[differing])[0].tolist()
        candidate = Filter(label=(label,), exclude_source=excluded[:MAX_EXCLUDED_SOURCES])
        return candidate if np.array_equal(candidate.mask(self.snapshot), mask) else None


def positions_of(snapshot: Snapshot, ids: Ids) -> Positions:
    """Positions of row ids in a snapshot, -1 for ids that are negative or not in it."""
    positions = np.full(ids.shape, -1, np.int64)
    positions[ids >= 0] = snapshot.positions_of(ids[ids >= 0])
    return positions
