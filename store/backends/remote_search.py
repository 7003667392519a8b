"""Search a filled back end: beside the shards (`remote_searcher`) or without them (`RemoteStore`)."""

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

SOURCES_NAMED = 50  # in one filter, at most
MASK_ROWS = 100_000  # a mask that is no filter: searched exactly in the shards, up to so many rows


def remote_searcher(snapshot: Snapshot, engine: SearchBackend) -> RemoteSearcher:
    """The engine as this snapshot's search.

    Raises
    ------
    NoStore, NotAStore, SpaceMismatch
    EngineError
        It holds other rows than the snapshot, or half of a push.
    """
    card = read_backend_manifest(engine)
    snapshot.space.require(card.space, engine.name)
    remote = RemoteStore(engine, card)
    if card.content != content_of(snapshot.manifest.parts):
        raise BackendError(
            f"{engine.name} holds {card.rows} rows of snapshot {card.snapshot}, this is snapshot {snapshot.number} "
            f"with {len(snapshot)} rows; run `clipfake store push` to bring it up to date"
        )
    return RemoteSearcher(snapshot, remote)


class RemoteStore:
    """A filled engine without the shards: answers are row ids and the engine's own similarities."""

    def __init__(self, engine: SearchBackend, card: BackendManifest | None = None) -> None:
        """Raises what `read_backend_manifest` raises, and EngineError for half of a push."""
        self.engine = engine
        self.card = card or read_backend_manifest(engine)
        if not self.card.complete:
            raise BackendError(
                f"a push to {engine.name} did not end; run `clipfake store push` again, it goes on from there"
            )
        self._counted: dict[str, int] = {}

    def search(self, queries: Vectors, k: int, which: Filter = Filter(), recall: float = 0.99) -> Matches:
        """The k nearest rows of each query that a filter allows; `rows` are row ids, as `describe` takes them."""
        if which.key:
            raise BadBlock("keys are looked up in the shards; ask with the store at hand, or filter by source")
        return self.nearest(queries, k, BackendFilter(which), recall)

    def nearest(self, queries: Vectors, k: int, allowed: BackendFilter, recall: float) -> Matches:
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if queries.shape[1] != self.card.space.dim:
            raise BadBlock(f"queries of {queries.shape[1]} dimensions against {self.engine.name}: {self.card.space}")
        result = Matches.none(len(queries), k)
        count = self.count(allowed)
        if not count or not len(queries):
            return result
        ids, similarity = self.engine.search(queries, min(k, count), allowed, self.width(count, k, recall))
        return result.merge(Matches(ids, np.asarray(similarity, np.float32)), k)

    def width(self, count: int, k: int, recall: float = 0.99) -> int | None:
        """Candidates that a search of so many allowed rows keeps, None where it is exact."""
        return None if exactly(count) else self.card.plan.width(recall, count / self.card.rows, k)

    def describe(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """id -> key, label, source, generator, category of some rows."""
        return self.engine.rows(ids)

    def count(self, allowed: BackendFilter) -> int:
        """Count the allowed rows; the back end is asked once per filter."""
        which = allowed.which
        if allowed.ids is not None:
            return self.engine.count(allowed)
        if which.selects_all:
            return self.card.rows
        if which == Filter(exclude_source=which.exclude_source):  # the notes have no source either
            return self.card.rows - self.count(BackendFilter(Filter(source=which.exclude_source)))
        if (name := repr(which)) not in self._counted:
            self._counted[name] = self.engine.count(allowed)
        return self._counted[name]


class RemoteSearcher:
    """An engine as one snapshot may use it: positions in, positions out, similarities of the stored vectors."""

    def __init__(self, snapshot: Snapshot, remote: RemoteStore) -> None:
        self.snapshot, self.remote = snapshot, remote

    def search(self, queries: Vectors, k: int, where: Filter | Mask | None = None, recall: float = 0.99) -> Matches:
        """Search as `Snapshot.search` does; results are ranked by the vectors in the shards.

        A mask is allowed where it is all rows, the rows of one label with or without some sources, or of few rows.
        """
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if not isinstance(where, Filter | None):
            named = self._named(np.asarray(where))
            if named is None:
                return self.snapshot.search(queries, k, where, recall=1)
            where = named
        which = where or Filter()
        ids = None
        if which.key:
            positions = self.snapshot.find(list(which.key))
            ids = tuple(self.snapshot.ids[positions[positions >= 0]].tolist())
        allowed = BackendFilter(replace(which, key=()), ids)
        found = self.remote.nearest(queries, fetched(k), allowed, recall)
        return rescore(self.snapshot, queries, positions_of(self.snapshot, found.rows), k)

    def _named(self, mask: Mask) -> Filter | None:
        """The filter that a mask is, None for one that is better searched in the shards."""
        count = int(np.count_nonzero(mask))
        if mask.shape != (len(self.snapshot),) or mask.dtype != np.bool_ or exactly(count):
            return None
        if count == len(mask):
            return Filter()
        labels = self.snapshot.column("labels")
        label = int(labels[np.argmax(mask)])
        if (found := self._label_without_sources(mask, label)) is not None:
            return found
        if count <= MASK_ROWS:
            return None
        raise BadBlock(f"a mask of {count} rows cannot be told to an engine; give a Filter")

    def _label_without_sources(self, mask: Mask, label: int) -> Filter | None:
        """The filter that the mask is, if it is all rows of a label but those of some sources."""
        rest = (self.snapshot.column("labels") == label) ^ mask  # what is left out, if the mask is of this label
        sources = self.snapshot.column("sources")
        left_out = distinct(sources[rest])[0].tolist()
        found = Filter(label=(label,), exclude_source=left_out[:SOURCES_NAMED])
        return found if np.array_equal(found.mask(self.snapshot), mask) else None


def positions_of(snapshot: Snapshot, ids: Ids) -> Positions:
    """Positions of row ids as `RemoteStore.search` gives them, -1 where the snapshot does not have one."""
    places = np.full(ids.shape, -1, np.int64)
    places[ids >= 0] = snapshot.positions_of(ids[ids >= 0])
    return places
