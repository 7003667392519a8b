"""A queue whose users take turns by the cost of what they queue, so that none waits for all that another has queued."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Share:
    """What one user of a queue has been promised so far."""

    finish: float = 0.0  # virtual time at which its last item ends


@dataclass(order=True)
class Entry(Generic[T]):
    """A queued item and its place in the order."""

    finish: float
    number: int
    item: T = field(compare=False)


class FairQueue(Generic[T]):
    """Self-clocked fair queueing (Golestani, 1994): items leave in the order of their virtual finishing times.

    A user's next item finishes its cost after the one before, or after the item that left last. Cheap items of one
    user overtake expensive ones of another, and an expensive one is overtaken only by as much as it costs itself.

    >>> queue, one, other = FairQueue(), Share(), Share()
    >>> for item in ("a1", "a2", "a3"):
    ...     queue.put(one, 10, item)
    >>> queue.put(other, 1, "b")
    >>> [queue.get() for _ in range(len(queue))]
    ['b', 'a1', 'a2', 'a3']
    """

    def __init__(self) -> None:
        self._entries: list[Entry[T]] = []
        self._now = 0.0  # virtual time
        self._count = 0  # of all items so far; among equals, the first to arrive is the first to leave

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, share: Share, cost: float, item: T) -> None:
        """Queue an item for the owner of a share."""
        share.finish = max(share.finish, self._now) + cost
        self._count += 1
        heapq.heappush(self._entries, Entry(share.finish, self._count, item))

    def peek(self) -> T:
        """Return the item that is next, without removing it; raises IndexError if there is none."""
        return self._entries[0].item

    def get(self) -> T:
        """Remove the item that is next, and return it; raises IndexError if there is none."""
        entry = heapq.heappop(self._entries)
        self._now = entry.finish
        return entry.item
