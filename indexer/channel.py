"""Bounded queue between two stages: the faster stage waits, and either stage can end it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelStopped(Exception):
    """Raised by `Channel.put` after the consumer has stopped the channel."""


class Channel(Generic[T]):
    """Bounded first-in, first-out queue for threads.

    >>> channel = Channel[int](2)
    >>> channel.put(1), channel.put(2), channel.close()
    (None, None, None)
    >>> list(channel)
    [1, 2]
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[T] = deque()
        self._changed = Condition()
        self._closed = self._stopped = False

    def put(self, value: T) -> None:
        """Wait until there is room and add a value; raises ChannelStopped after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) < self._size)
            if self._stopped:
                raise ChannelStopped
            self._waiting.append(value)
            self._changed.notify_all()

    def __len__(self) -> int:
        """Number of values waiting to be taken."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the values until the channel is closed and empty, or stopped."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._closed or bool(self._waiting))
                if self._stopped or not self._waiting:
                    return
                value = self._waiting.popleft()
                self._changed.notify_all()
            yield value

    def close(self) -> None:
        """Mark the end of the values; those waiting are still delivered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Discard the waiting values and release both stages."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
