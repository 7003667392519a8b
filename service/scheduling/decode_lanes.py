"""Decode images in threads: in turns between requests, within a bound on memory, and small ones beside large ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...errors import ClipfakeError
from ..problems import HttpProblem
from .fair_queue import FairQueue, Share
from .memory import release_memory

R = TypeVar("R")
SMALL_SHARE = 4  # a quarter of the memory is for small images
SMALL_FRACTION = 16  # an image is small if it needs at most a sixteenth of the memory


@dataclass(eq=False)
class Turns:
    """The turns of one request."""

    small: Share = field(default_factory=Share)
    large: Share = field(default_factory=Share)
    encoder: Share = field(default_factory=Share)


class Admission:
    """One image that may be decoded now. It holds a thread until its work is done, and memory until it is closed."""

    def __init__(self, lane: Lane, held: int) -> None:
        self._lane, self._held = lane, held  # bytes
        self._has_thread = True
        self._running = self._closed = False

    async def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a blocking function in the lane's threads, at most once."""
        loop = asyncio.get_running_loop()
        self._running = True
        future: Future[R] = self._lane.submit(function, *arguments)

        def done(_: Future[R]) -> None:  # in the thread of the lane, also after the request was cancelled
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._work_done)

        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def keep(self, size: int) -> None:
        """Hold only this many bytes from now on."""
        self._lane.free(self._held - min(size, self._held))
        self._held = min(size, self._held)

    def close(self) -> None:
        """Give back what is held, as soon as the thread has ended."""
        self._closed = True
        if not self._running:
            self._give_back()

    def _work_done(self) -> None:
        self._running = False
        if self._has_thread:
            self._has_thread = False
            self._lane.free_thread()
        if self._closed:
            self._give_back()

    def _give_back(self) -> None:
        if self._has_thread:
            self._has_thread = False
            self._lane.free_thread()
        self.keep(0)


@dataclass(eq=False)
class Ticket:
    """A queued image."""

    size: int  # bytes it needs
    admitted: asyncio.Future[Admission]


class Lane:
    """Threads and memory for the images of one kind. Its state changes in the event loop only."""

    def __init__(self, name: str, max_bytes: int, after: Callable[[], None] | None = None) -> None:
        """`after` is called in the thread after each image."""
        self._threads = max(2, os.cpu_count() or 2)  # free ones
        self._pool = ThreadPoolExecutor(self._threads, name)
        self._after = after
        self._max_bytes, self._held = max_bytes, 0
        self._queue = FairQueue[Ticket]()

    @asynccontextmanager
    async def admit(self, share: Share, size: int) -> AsyncIterator[Admission]:
        """Wait until an image that needs `size` bytes may be decoded; one that exceeds all memory goes alone."""
        ticket = Ticket(size, asyncio.get_running_loop().create_future())
        self._queue.put(share, size, ticket)
        self._admit_next()
        try:
            admission = await ticket.admitted
        except asyncio.CancelledError:
            if ticket.admitted.done() and not ticket.admitted.cancelled():  # admitted in the same moment
                ticket.admitted.result().close()
            else:
                ticket.admitted.cancel()
                self._admit_next()  # it may have been the next one, and too large
            raise
        try:
            yield admission
        finally:
            admission.close()

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """Call a function in a thread."""
        return self._pool.submit(self._call, function, *arguments)

    def free(self, size: int) -> None:
        """Take back bytes of an image."""
        self._held -= size
        self._admit_next()

    def free_thread(self) -> None:
        """Take back the thread of an image."""
        self._threads += 1
        self._admit_next()

    def close(self) -> None:
        """Wait for the running threads."""
        self._pool.shutdown()

    def _call(self, function: Callable[..., R], *arguments: Any) -> R:
        try:
            return function(*arguments)
        except (ClipfakeError, HttpProblem) as e:
            # It is kept until the whole request is answered, and the frames of its traceback would keep the pixels.
            e.__cause__ = e.__context__ = None
            raise e.with_traceback(None)  # noqa: B904
        finally:
            if self._after:
                self._after()

    def _admit_next(self) -> None:
        """Admit images in their order. The next one is never skipped, or a large one might wait for ever."""
        while self._threads and self._queue:
            ticket = self._queue.peek()
            if ticket.admitted.cancelled():
                self._queue.get()
                continue
            if self._held and self._held + ticket.size > self._max_bytes:
                return
            self._queue.get()
            self._threads -= 1
            self._held += ticket.size
            ticket.admitted.set_result(Admission(self, ticket.size))


class DecodeLanes:
    """A lane for small images and one for large ones, so that neither waits for the other."""

    def __init__(self, max_bytes: int) -> None:
        self._small_size = max_bytes // SMALL_FRACTION
        self.small = Lane("decode-small", max_bytes // SMALL_SHARE)
        self.large = Lane("decode-large", max_bytes - max_bytes // SMALL_SHARE, release_memory)

    def admit(self, turns: Turns, size: int) -> Any:
        """Wait until an image that needs `size` bytes may be decoded; an asynchronous context manager."""
        if size <= self._small_size:
            return self.small.admit(turns.small, size)
        return self.large.admit(turns.large, size)

    def close(self) -> None:
        """Wait for the running threads."""
        self.small.close()
        self.large.close()
