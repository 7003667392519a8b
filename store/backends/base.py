"""Interface of a search back end beyond this process. The implementations are in qdrant_edge.py and qdrant_server.py.

The shards remain the source of truth: a back end's rows can be deleted and pushed again (push.py). remote_search.py
searches it, with the width from search_plan.py; backend_manifest.py reads what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..filter import Filter
from ..records import Ids, Vectors
from ..space import Space


@dataclass(frozen=True)
class BackendFilter:
    """Rows that a search back end may return."""

    which: Filter  # by label, source, generator and category; keys are passed as `ids`
    ids: tuple[int, ...] | None = None


class SearchBackend(Protocol):
    """Interface of a search back end. A row keeps its id of the store; notes are points without a vector."""

    @property
    def name(self) -> str:
        """Kind and location of the back end, for messages."""

    def exists(self) -> bool:
        """True if the collection or folder exists."""

    def create(self, space: Space) -> None:
        """Create what is missing: the collection, and the indexes of its fields before the first vector."""

    def remove(self) -> None:
        """Delete the collection or folder with all rows and notes."""

    def write_note(self, note_id: int, content: dict[str, Any]) -> None:
        """Write a note. A reader that sees it also sees everything written before it."""

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        """Write rows; writing a row again changes nothing."""

    def drop(self, ids: Sequence[int]) -> None:
        """Delete rows or notes; unknown ids are ignored."""

    def drop_shard(self, number: int) -> None:
        """Delete all rows of one shard."""

    def ids_of(self, number: int) -> Ids:
        """(n,) ids of the rows of one shard that the back end holds, ascending."""

    def counts(self) -> dict[int, int]:
        """Shard number -> exact number of rows that the back end holds."""

    def count(self, allowed: BackendFilter) -> int:
        """Count the allowed points. Notes have no fields, so an empty or an exclude-only filter counts them too."""

    def search(self, queries: Vectors, k: int, allowed: BackendFilter, width: int | None) -> tuple[Ids, Vectors]:
        """Search the k nearest rows of each query.

        Parameters
        ----------
        width : candidates that the search keeps; 0 for the back end's default, None to search exactly

        Returns
        -------
        ids : (queries, k), -1 where there is no row
        similarity : (queries, k), NaN where there is no row
        """

    def payloads(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Id -> payload of these rows (key, label, source, …) or notes; unknown ids are left out."""

    def build_indexes(self) -> None:
        """Build the indexes and wait until they are complete."""

    def close(self) -> None: ...
