"""A short queue between two stages: whoever is ahead waits, and either side can end it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelStopped(Exception):
    """Nobody takes what is put here any more."""


class Channel(Generic[T]):
    """A bounded first-in, first-out queue for threads.

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
        """Wait for room; raises Stopped after `stop`."""
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
        """Iterate over the values, until `close` and nothing waits, or `stop`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._closed or bool(self._waiting))
                if self._stopped or not self._waiting:
                    return
                value = self._waiting.popleft()
                self._changed.notify_all()
            yield value

    def close(self) -> None:
        """Nothing more will be put; what waits is still taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Drop what waits and let both sides go."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
