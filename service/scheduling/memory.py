"""Return freed memory to the system. Threads that decode large images would otherwise keep what they needed once."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from contextlib import suppress

IDLE_SECONDS = 1.0


def release_memory() -> None:
    """Return the freed memory of all threads to the system. Without glibc, this does nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class IdleRelease:
    """Releases memory once there has been no work for a second; while there is, its memory is needed again at once."""

    def __init__(self, release: Callable[[], object]) -> None:
        """`release` is called in the event loop."""
        self._release = release
        self._timer: asyncio.TimerHandle | None = None
        self._last_work = 0.0

    def note_work(self) -> None:
        """Note that work ended just now."""
        loop = asyncio.get_running_loop()
        self._last_work = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(IDLE_SECONDS, self._check)

    def stop(self) -> None:
        """Release nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if (rest := self._last_work + IDLE_SECONDS - loop.time()) > 0:
            self._timer = loop.call_later(rest, self._check)
        else:
            self._release()
