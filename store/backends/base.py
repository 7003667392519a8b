"""Interface of a search back end beyond this process. qdrant.py has two of them.

The shards stay the source of truth; an engine's rows can be thrown away and pushed again (push.py). It is asked
through remote.py, as wide as plan.py says, and says itself what it holds (card.py).
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

    which: Filter  # of label, source, generator and category; its keys are told as ids
    ids: tuple[int, ...] | None = None


class SearchBackend(Protocol):
    """Interface of a search back end. A row's id is its id in the store; notes are points without a vector."""

    @property
    def name(self) -> str:
        """Place of the back end, for messages."""
        ...

    def there(self) -> bool:
        """True if there is anything at that place."""
        ...

    def create(self, space: Space) -> None:
        """Make what is missing: the place, and its indexes of labels, sources, … before the first vector."""
        ...

    def remove(self) -> None:
        """Drop everything at that place."""
        ...

    def note(self, id: int, text: dict[str, Any]) -> None:  # noqa: A002
        """Write a note. Whoever finds it finds what was put before it."""
        ...

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        """Rows in; writing a row again changes nothing."""
        ...

    def drop(self, ids: Sequence[int]) -> None:
        """Rows or notes out; ids that are not there are passed over."""
        ...

    def drop_shard(self, number: int) -> None:
        """Delete all rows of one shard."""
        ...

    def ids_of(self, number: int) -> Ids:
        """The rows of one shard that are there, ascending."""
        ...

    def counts(self) -> dict[int, int]:
        """shard number -> rows that are there, exactly."""
        ...

    def count(self, allowed: BackendFilter) -> int:
        """Points that are allowed: notes too, unless something is required of them."""
        ...

    def search(self, queries: Vectors, k: int, allowed: BackendFilter, width: int | None) -> tuple[Ids, Vectors]:
        """(queries, k) ids, -1 for none, and similarities; `width` candidates, 0 the engine's own, None exactly."""
        ...

    def rows(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the payloads of these rows (key, label, source, …) or notes, as far as they exist."""
        ...

    def settle(self) -> None:
        """Build the indexes and wait until they are there."""
        ...

    def close(self) -> None: ...
